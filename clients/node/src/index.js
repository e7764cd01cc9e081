/** The client of the mesh. */
export { BxmeshError } from './errors.js';
export { Mesh } from './mesh.js';
export { Session } from './session.js';
