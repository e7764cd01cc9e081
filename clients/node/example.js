import { Mesh } from 'bxmesh';

const [macromolecule, reflections] = process.argv.slice(2);
const mesh = new Mesh(); // the local server with its admin key, or { address, apiKey, tls }
const model = await mesh.createModel(macromolecule, { reflections });
const { tensors, samples } = await mesh.gradients(model, {
  onProgress: ({ step, samplesDone }) => console.log(step, samplesDone),
});
console.log(samples[0].geometry.energy, tensors.geometry_sites.shape);

const session = await mesh.session(model, { target: 'geometry' }); // on a worker that stays warm
const next = await session.step(new Float64Array(model.summary.atoms * 3));
console.log(next.samples[0].status, next.tensors.geometry_sites.data);
await session.close();
mesh.close();
