import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Agent, Mesh } from '../src/index.js';
import { gate, silent, until } from './agents.js';
import { cctbxFile, startMesh } from './server.js';

suite('an agent whose mesh is killed', { timeout: 120_000 }, () => {
  let server;
  let mesh;

  before(async () => {
    server = await startMesh();
    mesh = new Mesh({ ...server, retries: 30 });
  });

  after(async () => {
    mesh?.close();
    await server?.stop();
  });

  test('answers again afterwards, also what it was handling', async () => {
    const agent = new Agent(mesh, { id: 'survivor', type: 'test', concurrency: 2, onError: silent });
    const finish = gate();
    const begun = [];
    const done = [];
    agent.on('greeting.request', async (message) => {
      await message.reply('greeting.response', message.json);
    });
    agent.on('long', async (message) => {
      begun.push([message.json, message.attempt]);
      await finish.opened;
      done.push(message.json);
    });
    await agent.start();
    const { leaseId } = agent;
    try {
      for (const number of [1, 2, 3]) await mesh.send(agent.id, 'long', number);
      await until(() => begun.length === 2);
      await server.kill();
      finish.open();
      await server.restart();
      for (const mode of ['durable', 'direct']) {
        const reply = await mesh.request(agent.id, 'greeting.request', mode, { mode });
        assert.equal(reply.json, mode);
      }
      assert.equal(agent.leaseId, leaseId);
      await until(() => done.length === 3);
      assert.deepEqual(begun.sort(), [[1, 1], [2, 1], [3, 1]]);
    } finally {
      await agent.stop();
    }
  });

  test('goes on with its task', async () => {
    const agent = new Agent(mesh, { id: 'worker', type: 'test', onError: silent });
    const begun = gate();
    const finish = gate();
    agent.task('long', async (task) => {
      begun.open();
      await finish.opened;
      await task.progress(90);
      return task.attempt;
    });
    await agent.start();
    try {
      const { taskId } = await mesh.assignTask('long', null, { agentId: agent.id });
      let last;
      const watched = (async () => {
        for await (const task of mesh.watchTask(taskId)) last = task;
      })();
      await begun.opened;
      await server.kill();
      finish.open();
      await server.restart();
      await watched;
      assert.deepEqual([last.state, last.result, last.attempts], ['completed', 1, 1]);
    } finally {
      await agent.stop();
    }
  });

  test('streams gradients as in the README, before and afterwards', async () => {
    const path = fileURLToPath(new URL('../agent.js', import.meta.url));
    const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
    assert.ok(readme.includes(await readFile(path, 'utf8')));
    const macromolecule = await cctbxFile('mmtbx/regression/pdbs/7n2l.pdb');
    const { modelId, summary } = await mesh.createModel(macromolecule);
    const own = (await mesh.gradients(modelId)).samples[0].geometry;
    const coordinates = [await sitesOf(macromolecule), new Array(3 * summary.atoms).fill(0)];

    const env = { ...process.env, BXMESH_STATE_DIR: server.stateDirectory };
    const example = spawn(process.execPath, [path, 'example'], { env, stdio: ['ignore', 'pipe', 2] });
    const exited = once(example, 'exit');
    try {
      await once(example.stdout, 'data');
      const ask = () => mesh.request('example', 'gradients.request', { modelId, coordinates });
      const before = (await ask()).json;
      const { energy, gradientNorm } = before[0];
      assert.deepEqual({ energy, gradientNorm }, { energy: own.energy, gradientNorm: own.gradientNorm });
      assert.deepEqual(before.map(({ status }) => status), ['ok', 'degenerate']);
      await server.kill();
      await server.restart();
      assert.deepEqual((await ask()).json, before);
    } finally {
      example.kill('SIGTERM');
      assert.deepEqual(await exited, [0, null]);
    }
    await assert.rejects(mesh.send('example', 'x'), { reason: 'AGENT_NOT_FOUND' });
  });
});

/** Returns the coordinates in a PDB file. */
async function sitesOf(path) {
  const lines = (await readFile(path, 'utf8')).split('\n');
  const atoms = lines.filter((line) => /^(ATOM|HETATM)/.test(line));
  return atoms.flatMap((line) => [30, 38, 46].map((start) => Number(line.slice(start, start + 8))));
}
