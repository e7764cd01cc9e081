import { Agent, Mesh } from 'bxmesh';

const mesh = new Mesh();
const id = process.argv[2] ?? 'gradients-1';
const agent = new Agent(mesh, { id, type: 'gradients', concurrency: 2 });

// { modelId, coordinates: [[x, y, z, x, y, z, …], …] } in angstrom, one list per step
agent.on('gradients.request', async (message) => {
  const { modelId, coordinates } = message.json;
  const { signal, traceparent } = message; // ends with the message, goes on with its trace
  const session = await mesh.session(modelId, { target: 'geometry', signal, traceparent });
  const steps = [];
  try {
    for (const each of coordinates) {
      const { samples } = await session.step(Float64Array.from(each), { signal });
      const { status, geometry } = samples[0];
      steps.push({ status, energy: geometry?.energy, gradientNorm: geometry?.gradientNorm });
    }
  } finally {
    await session.close();
  }
  await message.reply('gradients.response', steps);
});

await agent.start();
console.log(`${id} answers gradients.request`);
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => agent.stop());
await agent.closed;
mesh.close();
