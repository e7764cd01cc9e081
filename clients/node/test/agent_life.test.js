import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Operation } from '../src/calls.js';
import { Agent, Mesh } from '../src/index.js';
import { connectionOf } from '../src/mesh.js';
import { gate, silent, until, useAgents } from './agents.js';
import { startProxy } from './proxy.js';

suite('agents come and go, and', { timeout: 120_000 }, () => {
  let server;
  let mesh;
  const { agentOf, greeter } = useAgents((given) => ({ server, mesh } = given));

  test('share a mailbox over two connections, of which one may go', async () => {
    const handled = new Map();
    const firstHasOne = gate();
    const secondHasOne = gate();
    const secondMesh = new Mesh(server);
    const first = agentOf({ concurrency: 1 });
    const work = (name, begun, hold) => async (message) => {
      begun.open();
      await hold(message);
      handled.set(message.json, [...(handled.get(message.json) ?? []), [name, message.attempt]]);
    };
    first.on('share', work('first', firstHasOne, () => secondHasOne.opened));
    await first.start();
    const { id, leaseId } = first;
    const second = new Agent(secondMesh, { id, type: 'test', leaseId, onError: silent });
    const stuck = (message) => once(message.signal, 'abort').then(() => message.signal.throwIfAborted());
    second.on('share', work('second', secondHasOne, stuck));
    await second.start();
    try {
      for (let number = 0; number < 6; number += 1) await mesh.send(id, 'share', number);
      await Promise.all([firstHasOne.opened, secondHasOne.opened]);
      await until(() => handled.size === 5);
      secondMesh.close();
      await assert.rejects(second.closed);
      await until(() => handled.size === 6);
      const ways = [...handled.values()].flat();
      assert.equal(ways.length, 6);
      assert.ok(ways.every(([name]) => name === 'first'));
      assert.equal(ways.filter(([, attempt]) => attempt > 1).length, 1);
    } finally {
      await second.stop();
    }
  });

  test('are found by what they offer, and say how busy they are', async () => {
    const begun = gate();
    const finish = gate();
    const metadata = { site: 'here' };
    const agent = agentOf({ capabilities: ['find.me'], version: '1.2', metadata, leaseSeconds: 60 });
    agent.on('work', async () => {
      begun.open();
      await finish.opened;
    });
    agent.task('find.work', silent);
    await agent.start();
    const { agents: [found], missingCapabilities } = await mesh.discover(['find.me'], { metadata });
    assert.deepEqual(found, {
      agentId: agent.id,
      agentType: 'test',
      version: '1.2',
      capabilities: ['find.me', 'find.work'],
      metadata,
      status: 'active',
      currentLoad: 0,
      activeTasks: 0,
      maxConcurrentTasks: 1,
    });
    assert.deepEqual(missingCapabilities, []);
    const nobody = await mesh.discover(['find.me', 'find.nobody'], { agentType: 'test' });
    assert.deepEqual(nobody, { agents: [], missingCapabilities: ['find.nobody'] });
    await mesh.send(agent.id, 'work');
    await begun.opened;
    await until(async () => (await live(agent.id)).status === 'busy');
    assert.equal((await live(agent.id)).currentLoad, 1);
    finish.open();
    await until(async () => (await live(agent.id)).status === 'active');
  });

  test('do not start twice, nor where they may not', async () => {
    const agent = await greeter();
    await assert.rejects(agent.start(), { reason: 'AGENT_STATE' });
    const stranger = new Mesh({ ...server, apiKey: 'bxm_wrong' });
    try {
      const other = agentOf({}, stranger);
      await assert.rejects(other.start(), { code: 'UNAUTHENTICATED' });
      await assert.rejects(other.closed, { code: 'UNAUTHENTICATED' });
    } finally {
      stranger.close();
    }
    const nowhere = new Mesh({ ...server, address: `${server.address}-not`, retries: 1 });
    try {
      await assert.rejects(agentOf({}, nowhere).start(), { code: 'UNAVAILABLE' });
    } finally {
      nowhere.close();
    }
  });

  test('finish what they have when they are stopped, and leave', async () => {
    const begun = gate();
    const finish = gate();
    const agent = agentOf();
    agent.on('last.request', async (message) => {
      begun.open();
      await finish.opened;
      await message.reply('last.response', 'done');
    });
    await agent.start();
    const reply = mesh.request(agent.id, 'last.request');
    await begun.opened;
    const stopped = agent.stop({ reason: 'enough' });
    finish.open();
    assert.equal((await reply).json, 'done');
    await stopped;
    await agent.closed;
    await assert.rejects(live(agent.id), { code: 'NOT_FOUND' });
  });

  test('give back what they cannot finish', async () => {
    const begun = gate();
    const aborted = gate();
    const agent = agentOf();
    agent.on('endless', async (message) => {
      begun.open();
      await once(message.signal, 'abort');
      aborted.open(message.signal.reason);
      message.signal.throwIfAborted();
    });
    await agent.start();
    await mesh.send(agent.id, 'endless', 1);
    await begun.opened;
    await agent.stop({ timeout: 50 });
    assert.equal((await aborted.opened).reason, 'AGENT_STOPPED');
    const got = gate();
    const successor = agentOf({ id: agent.id });
    successor.on('endless', got.open);
    await successor.start();
    assert.equal((await got.opened).attempt, 2);
  });

  test('register again when their lease is over', async () => {
    const agent = await greeter();
    const { leaseId } = agent;
    await call('deregisterAgent', { agentId: agent.id });
    await until(() => agent.leaseId !== leaseId);
    const reply = await mesh.request(agent.id, 'greeting.request', { name: 'Cy' });
    assert.deepEqual(reply.json, { text: 'Hello, Cy' });
  });

  test('end when another process takes their name', async () => {
    const agent = await greeter();
    const successor = await greeter({ id: agent.id });
    await assert.rejects(agent.closed, { reason: 'AGENT_REPLACED' });
    const reply = await mesh.request(successor.id, 'greeting.request', { name: 'Di' });
    assert.deepEqual(reply.json, { text: 'Hello, Di' });
  });

  test('answer on the next connection what they got on one that was lost', async () => {
    const path = join(server.stateDirectory, 'proxy.sock');
    const proxy = await startProxy(path, server.address.replace('unix:', ''));
    const remote = new Mesh({ ...server, address: `unix:${path}` });
    try {
      const attempts = [];
      const finish = gate();
      const agent = agentOf({ concurrency: 2 }, remote);
      agent.on('long.request', async (message) => {
        attempts.push(message.attempt);
        await finish.opened;
        await message.reply('long.response', message.json);
      });
      await agent.start();
      const replies = [1, 2, 3].map((number) => mesh.request(agent.id, 'long.request', number));
      await until(() => attempts.length === 2);
      proxy.cut();
      finish.open();
      assert.deepEqual((await Promise.all(replies)).map(({ json }) => json), [1, 2, 3]);
      assert.deepEqual(attempts, [1, 1, 1]);
      await agent.stop();
    } finally {
      remote.close();
      await proxy.close();
    }
  });

  test('stop working on what went to another while they were away', async () => {
    const path = join(server.stateDirectory, 'away.sock');
    const target = server.address.replace('unix:', '');
    let proxy = await startProxy(path, target);
    const remote = new Mesh({ ...server, address: `unix:${path}` });
    try {
      const begun = gate();
      const aborted = gate();
      const agent = agentOf({}, remote);
      agent.on('away.request', async (message) => {
        if (message.attempt > 1) return await message.reply('away.response', message.attempt);
        begun.open();
        await once(message.signal, 'abort');
        aborted.open(message.signal.reason);
        throw message.signal.reason;
      });
      await agent.start();
      const reply = mesh.request(agent.id, 'away.request');
      await begun.opened;
      await proxy.close();
      // Longer than a delivery's lease, shorter than the agent's.
      await sleep(5000);
      proxy = await startProxy(path, target);
      assert.equal((await aborted.opened).reason, 'LEASE_LOST');
      assert.equal((await reply).json, 2);
      await agent.stop();
    } finally {
      remote.close();
      await proxy.close();
    }
  });

  async function call(method, request) {
    return await connectionOf(mesh).unary(method, request, new Operation({}, 10_000));
  }

  async function live(agentId) {
    return (await call('getAgent', { agentId })).agent;
  }
});
