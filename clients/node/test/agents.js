/** What the tests of agents share. */
import { after, afterEach, before } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent, Mesh } from '../src/index.js';
import { startMesh } from './server.js';

const SETTINGS = {
  BXMESH_DELIVERY_LEASE: '2',
  BXMESH_MESSAGE_ATTEMPTS: '3',
  BXMESH_MAILBOX_CAPACITY: '40',
};

/** Takes what handlers throw without a word. */
export const silent = () => {};

/** What is given to a test once something else has happened. */
export function gate() {
  let open;
  const opened = new Promise((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

/** Waits for a condition. */
export async function until(condition) {
  while (!(await condition())) await sleep(20);
}

/** Returns a task as it stands at its end. */
export async function ended(mesh, { taskId }) {
  let last;
  for await (const task of mesh.watchTask(taskId)) last = task;
  return last;
}

/**
 * Gives a suite a mesh, whose deliveries are leased for 2 s and tried three times and whose
 * mailboxes hold 40 of them, and agents that are stopped after each test.
 *
 * @param {(given: {server: object, mesh: Mesh}) => void} given takes them when they are there
 */
export function useAgents(given) {
  let server;
  let mesh;
  let agents = [];
  let names = 0;

  before(async () => {
    server = await startMesh({ settings: SETTINGS });
    mesh = new Mesh(server);
    given({ server, mesh });
  });

  after(async () => {
    mesh?.close();
    await server?.stop();
  });

  afterEach(async () => {
    for (const agent of agents) await agent.stop();
    agents = [];
  });

  function agentOf(options = {}, through = mesh) {
    names += 1;
    const id = `agent-${names}`;
    const agent = new Agent(through, { id, type: 'test', onError: silent, ...options });
    agents.push(agent);
    return agent;
  }

  async function greeter(options, through) {
    const agent = agentOf(options, through);
    agent.on('greeting.request', async (message) => {
      await message.reply('greeting.response', { text: `Hello, ${message.json.name}` });
    });
    await agent.start();
    return agent;
  }

  return { agentOf, greeter };
}
