import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Operation } from '../src/calls.js';
import { Agent, BxmeshError, Drop, Mesh } from '../src/index.js';
import { connectionOf } from '../src/mesh.js';
import { startProxy } from './proxy.js';
import { PYTHON, cctbxFile, startMesh } from './server.js';

const silent = () => {};

/** What is given to a test once something else has happened. */
function gate() {
  let open;
  const opened = new Promise((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

async function until(condition) {
  while (!(await condition())) await sleep(20);
}

suite('agents', { timeout: 120_000 }, () => {
  const settings = { BXMESH_DELIVERY_LEASE: '2', BXMESH_MESSAGE_ATTEMPTS: '3' };
  let server;
  let mesh;
  let agents = [];
  let names = 0;

  before(async () => {
    server = await startMesh({ settings });
    mesh = new Mesh(server);
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

  for (const mode of ['durable', 'direct']) {
    test(`answer a request, ${mode}`, async () => {
      const { id } = await greeter();
      const caller = await greeter();
      const options = { mode, conversationId: 'c', headers: { a: 'b' } };
      for (const from of [mesh, caller]) {
        const reply = await from.request(id, 'greeting.request', { name: 'Ada' }, options);
        assert.equal(reply.type, 'greeting.response');
        assert.deepEqual(reply.json, { text: 'Hello, Ada' });
        assert.equal(reply.sender, id);
        assert.equal(reply.conversationId, 'c');
        assert.ok(reply.createTime instanceof Date);
      }
    });

    test(`get answers as messages where nobody waits, ${mode}`, async () => {
      const { id } = await greeter();
      const answered = gate();
      const caller = agentOf();
      caller.on('greeting.response', answered.open);
      await caller.start();
      const sent = await caller.send(id, 'greeting.request', { name: 'Bo' }, { mode });
      const answer = await answered.opened;
      assert.deepEqual(answer.json, { text: 'Hello, Bo' });
      assert.equal(answer.sender, id);
      assert.equal(answer.correlationId, sent.messageId);
      assert.equal(answer.direct, mode === 'direct');
      assert.equal(sent.receivers, mode === 'direct' ? 1 : 0);
    });
  }

  test('get all that was said of a message', async () => {
    const got = gate();
    const agent = agentOf();
    agent.on('note.*', got.open);
    await agent.start();
    const expireTime = new Date(Date.now() + 60_000);
    const traceparent = `00-${'1'.repeat(32)}-${'2'.repeat(16)}-01`;
    await mesh.send(agent.id, 'note.short', [1, null, 'ü'], {
      messageId: 'm-1',
      priority: 'high',
      headers: { colour: 'blue' },
      expireTime,
      traceparent,
    });
    const message = await got.opened;
    assert.deepEqual(message.json, [1, null, 'ü']);
    assert.deepEqual(message.headers, { colour: 'blue' });
    assert.deepEqual(message.expireTime, expireTime);
    assert.equal(message.id, 'm-1');
    assert.equal(message.priority, 'high');
    assert.equal(message.recipient, agent.id);
    assert.equal(message.attempt, 1);
    assert.equal(message.maxAttempts, 3);
    assert.equal(message.traceparent, traceparent);
  });

  test('are given again what their handler threw at', async () => {
    const attempts = [];
    const agent = agentOf();
    agent.on('hard.request', async (message) => {
      attempts.push(message.attempt);
      const soon = { reason: 'NOT_YET', retryAfter: 10 };
      if (message.attempt < 3) throw new BxmeshError('not yet', 'UNAVAILABLE', soon);
      await message.reply('hard.response', attempts);
    });
    await agent.start();
    const reply = await mesh.request(agent.id, 'hard.request');
    assert.deepEqual(reply.json, [1, 2, 3]);
  });

  test('drop what cannot be done, which is a dead letter then', async () => {
    const errors = [];
    const agent = agentOf({ onError: (error, { type }) => errors.push([error.reason, type]) });
    agent.on('bad.request', () => {
      throw new Drop('there is no such model', { code: 'NOT_FOUND', reason: 'NO_MODEL' });
    });
    await agent.start();
    const wanted = { code: 'NOT_FOUND', reason: 'NO_MODEL', message: 'there is no such model' };
    await assert.rejects(mesh.request(agent.id, 'bad.request', { model: 1 }), wanted);
    const [letter, ...others] = await mesh.deadLetters({ agentId: agent.id });
    assert.equal(others.length, 0);
    assert.equal(letter.error.reason, 'NO_MODEL');
    assert.equal(letter.message.type, 'bad.request');
    assert.deepEqual(letter.message.json, { model: 1 });
    assert.equal(letter.attempts, 1);
    assert.deepEqual(errors, [['NO_MODEL', 'bad.request']]);
  });

  test('give up what never succeeds, with the last error', async () => {
    const agent = agentOf();
    agent.on('never.request', () => {
      throw Object.assign(new TypeError('oh'), { retryAfter: 0 });
    });
    await agent.start();
    const wanted = { code: 'INTERNAL', reason: 'TYPE_ERROR', message: 'oh' };
    await assert.rejects(mesh.request(agent.id, 'never.request'), wanted);
    const [letter] = await mesh.deadLetters({ agentId: agent.id });
    assert.equal(letter.attempts, 3);
  });

  test('talk to agents in Python', async () => {
    const { id } = await greeter();
    const script = fileURLToPath(new URL('greeter.py', import.meta.url));
    const { address, stateDirectory } = server;
    const python = spawn(PYTHON, [script, address, stateDirectory], { stdio: ['ignore', 'pipe', 2] });
    const exited = once(python, 'exit');
    try {
      await once(python.stdout, 'data');
      for (const mode of ['durable', 'direct']) {
        const question = { name: 'Eve', ask: id };
        const reply = await mesh.request('python', 'greeting.request', question, { mode });
        assert.deepEqual(reply.json, { text: 'Hello, Eve', from: id });
      }
      const nobody = mesh.request('python', 'greeting.request', { name: 'x', ask: 'nobody' });
      await assert.rejects(nobody, { code: 'NOT_FOUND', reason: 'AGENT_NOT_FOUND' });
      const { taskId } = await mesh.assignTask('python.square', 12);
      assert.equal((await ended({ taskId })).result, 144);
    } finally {
      python.kill('SIGTERM');
      assert.deepEqual(await exited, [0, null]);
    }
  });

  for (const mode of ['durable', 'direct']) {
    test(`tell a sender who does not wait what went wrong, ${mode}`, async () => {
      const agent = agentOf();
      agent.on('bad.request', () => {
        throw new Drop('no', { metadata: { what: 'it' } });
      });
      await agent.start();
      const told = gate();
      const caller = agentOf();
      caller.on('ERROR_REPORT', told.open);
      await caller.start();
      const { messageId } = await caller.send(agent.id, 'bad.request', 1, { mode });
      const report = await told.opened;
      assert.equal(report.correlationId, messageId);
      assert.equal(report.sender, agent.id);
      const { code, reason, message, metadata } = report.error;
      assert.deepEqual([code, reason, message], ['FAILED_PRECONDITION', 'DROPPED', 'no']);
      assert.deepEqual(metadata, { what: 'it' });
      const request = mesh.request(agent.id, 'bad.request', 1, { mode });
      await assert.rejects(request, { reason: 'DROPPED' });
    });
  }

  test('keep what they work on for as long as it takes', async () => {
    const agent = agentOf();
    const attempts = [];
    agent.on('slow.request', async (message) => {
      attempts.push(message.attempt);
      await sleep(5000);
      message.signal.throwIfAborted();
      await message.reply('slow.response');
    });
    await agent.start();
    assert.equal((await mesh.request(agent.id, 'slow.request')).json, undefined);
    assert.deepEqual(attempts, [1]);
  });

  test('handle no more at a time than they said', async () => {
    let running = 0;
    let most = 0;
    let handled = 0;
    const agent = agentOf({ concurrency: 3 });
    agent.on('*', async () => {
      running += 1;
      most = Math.max(most, running);
      await sleep(10);
      running -= 1;
      handled += 1;
    });
    await agent.start();
    for (const mode of ['durable', 'direct']) {
      handled = 0;
      const sent = Array.from({ length: 20 }, () => mesh.send(agent.id, 'x', 1, { mode }));
      await Promise.all(sent);
      await until(() => handled === 20);
      assert.equal(most, 3);
    }
  });

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

  test('hear a broadcast if they fit', async () => {
    const heard = [];
    const capabilities = ['cast.here'];
    const listeners = [
      agentOf({ capabilities }),
      agentOf({ capabilities: [...capabilities, { name: 'cast.more', description: 'more' }] }),
      agentOf(),
    ];
    for (const listener of listeners) {
      listener.on('news', ({ json, recipient }) => heard.push([recipient, json]));
      await listener.start();
    }
    // Who is there is looked up once a second.
    await until(async () => {
      const whom = { capabilities, mode: 'direct' };
      return (await mesh.broadcast('ping', 1, whom)).recipients === 2;
    });
    const sent = await listeners[0].broadcast('news', 1, { capabilities });
    assert.deepEqual([sent.recipients, sent.refusedAgentIds], [1, []]);
    await until(() => heard.length > 0);
    assert.deepEqual(heard, [[listeners[1].id, 1]]);
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

  test('are refused what the contract does not have', async () => {
    const agent = await greeter();
    const code = 'INVALID_ARGUMENT';
    await assert.rejects(mesh.send(agent.id, 'no type', 1), { code });
    await assert.rejects(mesh.send(agent.id, 'x', 1, { priority: 'urgent' }), { code });
    await assert.rejects(mesh.send(agent.id, 'x', 1, { mode: 'fast' }), { code });
    await assert.rejects(mesh.send(agent.id, 'x', () => {}), { code });
    await assert.rejects(mesh.send(agent.id, 'x', 'x'.repeat(2 ** 20)), { code });
    await assert.rejects(mesh.send(agent.id, 'x', 1, { headers: { '': 'x' } }), { code });
    assert.throws(() => agentOf({ colour: 'blue' }), { code });
    assert.throws(() => agentOf({ concurrency: 0 }), { code });
    assert.throws(() => agent.on('late', silent), { code: 'FAILED_PRECONDITION' });
    await assert.rejects(mesh.send('nobody', 'x', 1), { reason: 'AGENT_NOT_FOUND' });
    await assert.rejects(mesh.send(agent.id, 'x', 1, { sender: 'somebody' }), {
      reason: 'SENDER_FORGED',
    });
    const late = { expireTime: new Date(0) };
    await assert.rejects(mesh.send(agent.id, 'x', 1, late), { reason: 'MESSAGE_EXPIRED' });
  });

  test('let who waits in vain know', async () => {
    const agent = agentOf();
    agent.on('mute.request', silent);
    await agent.start();
    const request = (options) => mesh.request(agent.id, 'mute.request', 1, options);
    const direct = { timeout: 300, mode: 'direct' };
    await assert.rejects(request(direct), { code: 'DEADLINE_EXCEEDED', reason: 'NO_REPLY' });
    const signal = AbortSignal.abort(new Error('enough'));
    await assert.rejects(request({ signal }), { message: 'enough' });
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

  test('do a task, and say how far they are', async () => {
    const agent = agentOf({ capabilities: ['counting'] });
    const seen = gate();
    agent.task('count.up', async (task) => {
      assert.equal(task.description, 'up to three');
      assert.deepEqual(task.labels, { colour: 'blue' });
      await task.progress(50, 'half of it');
      await seen.opened;
      return { counted: task.parameters.to, attempt: task.attempt };
    });
    await agent.start();
    const task = await mesh.assignTask('count.up', { to: 3 }, {
      capabilities: ['counting', 'count.up'],
      description: 'up to three',
      labels: { colour: 'blue' },
      priority: 'high',
      timeout: 60_000,
    });
    assert.equal(task.type, 'count.up');
    const states = [];
    for await (const { state, progress, result, agentId } of mesh.watchTask(task.taskId)) {
      states.push(state);
      if (progress.percent === 50) seen.open();
      if (state !== 'completed') continue;
      assert.deepEqual(result, { counted: 3, attempt: 1 });
      assert.equal(agentId, agent.id);
    }
    assert.equal(states.at(-1), 'completed');
    assert.ok(states.includes('running'));
    const ended = await mesh.task(task.taskId);
    assert.equal(ended.progress.message, 'half of it');
    assert.equal(ended.attempts, 1);
    assert.ok(ended.endTime >= ended.startTime);
  });

  test('do again what failed, unless its reason says that it is pointless', async () => {
    const agent = agentOf();
    agent.task('fail', (task) => {
      if (task.parameters === 'twice' && task.attempt > 1) return null;
      throw new Drop('no', { reason: task.parameters === 'never' ? 'POINTLESS' : 'NOT_YET' });
    });
    await agent.start();
    const retry = { maxAttempts: 2, initialBackoff: 1, nonRetryableReasons: ['POINTLESS'] };
    const options = { agentId: agent.id, retry };
    const never = await ended(await mesh.assignTask('fail', 'never', options));
    assert.deepEqual([never.state, never.attempts, never.error.reason], ['failed', 1, 'POINTLESS']);
    const twice = await ended(await mesh.assignTask('fail', 'twice', options));
    assert.deepEqual([twice.state, twice.attempts, twice.result], ['completed', 2, null]);
    const always = await ended(await mesh.assignTask('fail', 'always', options));
    assert.deepEqual([always.state, always.attempts, always.error.message], ['failed', 2, 'no']);
    const policy = { agentId: agent.id, retry: { maxAttempts: 1 } };
    const strange = await ended(await mesh.assignTask('strange', 1, policy));
    assert.deepEqual([strange.state, strange.error.reason], ['failed', 'UNHANDLED']);
  });

  test('stop a task that is cancelled', async () => {
    const agent = agentOf();
    const begun = gate();
    const aborted = gate();
    agent.task('endless', async ({ signal }) => {
      begun.open();
      await once(signal, 'abort');
      aborted.open(signal.reason);
      signal.throwIfAborted();
    });
    agent.task('next', () => 'next');
    await agent.start();
    const { taskId } = await mesh.assignTask('endless');
    await begun.opened;
    await mesh.cancelTask(taskId, { reason: 'enough' });
    assert.equal((await aborted.opened).code, 'CANCELLED');
    const { state, error } = await ended({ taskId });
    assert.deepEqual([state, error.code], ['cancelled', 'CANCELLED']);
    const next = await ended(await mesh.assignTask('next', 1, { agentId: agent.id }));
    assert.equal(next.result, 'next');
  });

  test('are named what is missing for a task', async () => {
    const nobody = { capabilities: ['nobody.can'] };
    await assert.rejects(mesh.assignTask('x', 1, nobody), { code: 'FAILED_PRECONDITION' });
    await assert.rejects(mesh.assignTask('x', 1, { colour: 'blue' }), { code: 'INVALID_ARGUMENT' });
    await assert.rejects(mesh.assignTask('x', 1), { code: 'FAILED_PRECONDITION' });
    const watch = mesh.watchTask('no-such-task');
    await assert.rejects(watch.next(), { code: 'NOT_FOUND' });
    const task = await mesh.assignTask('x', 1, { ...nobody, waitForAgent: true });
    assert.equal(task.state, 'pending');
    const signal = AbortSignal.timeout(100);
    const wait = async () => {
      for await (const { state } of mesh.watchTask(task.taskId, { signal })) assert.equal(state, 'pending');
    };
    await assert.rejects(wait(), { name: 'TimeoutError' });
  });

  async function ended({ taskId }) {
    let last;
    for await (const task of mesh.watchTask(taskId)) last = task;
    return last;
  }

  async function call(method, request) {
    return await connectionOf(mesh).unary(method, request, new Operation({}, 10_000));
  }

  async function live(agentId) {
    return (await call('getAgent', { agentId })).agent;
  }
});

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
