/** The client of the mesh. */
export { Agent } from './agent.js';
export { BxmeshError, Drop } from './errors.js';
export { Mesh } from './mesh.js';
export { DeliveredMessage, Message } from './messages.js';
export { Session } from './session.js';
export { Task } from './tasks.js';
