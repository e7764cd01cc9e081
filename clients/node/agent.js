import { Agent, Mesh } from 'bxmesh';

const mesh = new Mesh(); // the local server with its admin key, or { address, apiKey, tls }
const agent = new Agent(mesh, {
  id: process.argv[2] ?? 'gradients-1',
  type: 'gradients',
  capabilities: ['example.gradients'],
  concurrency: 2,
});

// {"modelId": "sha256:…", "coordinates": [[x, y, z, …], …]} in angstrom, one list per step
agent.on('gradients.request', async (message) => {
  const { modelId, coordinates } = message.json;
  const { signal, traceparent } = message;
  const session = await mesh.session(modelId, { target: 'geometry', signal, traceparent });
  try {
    const answers = coordinates.map((each) => session.step(Float64Array.from(each), { signal }));
    const steps = (await Promise.all(answers)).map(({ samples: [sample] }) => ({
      energy: sample.geometry.energy,
      gradientNorm: sample.geometry.gradientNorm,
    }));
    await message.reply('gradients.response', { steps });
  } finally {
    await session.close();
  }
});

await agent.start();
console.log(`${agent.id} answers gradients.request`);
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => agent.stop());
await agent.closed;
mesh.close();
