/** Who is in the mesh. */
import { checked } from './errors.js';
import { entries, object } from './values.js';

/**
 * @typedef {object} LiveAgent
 * @property {string} agentId
 * @property {string} agentType
 * @property {string} version
 * @property {string[]} capabilities
 * @property {Record<string, string>} metadata
 * @property {'active' | 'busy' | 'draining'} status
 * @property {number} currentLoad the part of its capacity in use, 0 to 1
 * @property {number} activeTasks
 * @property {number} maxConcurrentTasks
 */

/** @typedef {{agents: LiveAgent[], missingCapabilities: string[]}} Discovery */

/** @returns {Promise<Discovery>} */
export async function discover(connection, { metadata, ...rest }, operation) {
  const filter = {
    ...checked('bxmesh.registry.v1.AgentFilter', rest),
    metadata: entries(metadata),
  };
  const response = await connection.unary('discoverAgents', { filter }, operation);
  const { agents, missingCapabilities } = response;
  return { agents: agents.map(liveAgent), missingCapabilities };
}

/** @returns {LiveAgent} */
function liveAgent({ capabilities, metadata, ...agent }) {
  return {
    agentId: agent.agentId,
    agentType: agent.agentType,
    version: agent.version,
    capabilities: capabilities.map(({ name }) => name),
    metadata: object(metadata),
    status: agent.status,
    currentLoad: agent.currentLoad,
    activeTasks: agent.activeTasks,
    maxConcurrentTasks: agent.maxConcurrentTasks,
  };
}
