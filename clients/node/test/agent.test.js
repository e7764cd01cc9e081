import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { BxmeshError, Drop } from '../src/index.js';
import { ended, gate, silent, until, useAgents } from './agents.js';
import { PYTHON } from './server.js';

suite('agents', { timeout: 120_000 }, () => {
  let server;
  let mesh;
  const { agentOf, greeter } = useAgents((given) => ({ server, mesh } = given));

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
      assert.equal((await ended(mesh, { taskId })).result, 144);
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

  test('go on when the mesh refuses an answer', async () => {
    const agent = agentOf();
    agent.on('odd.request', async (message) => {
      const headers = message.json === 'odd' ? { half: '\ud83d' } : {};
      await message.reply('odd.response', message.attempt, { headers });
    });
    await agent.start();
    const odd = mesh.request(agent.id, 'odd.request', 'odd');
    await assert.rejects(odd, { code: 'INVALID_ARGUMENT', reason: 'MESSAGE_MALFORMED' });
    assert.equal((await mesh.request(agent.id, 'odd.request', 'even')).json, 1);
    const [{ attempts, error }] = await mesh.deadLetters({ agentId: agent.id });
    assert.deepEqual([attempts, error.reason], [3, 'MESSAGE_MALFORMED']);
  });

  test('are not held up by an answer to a full mailbox', async () => {
    const agent = await greeter();
    const caller = agentOf();
    const finish = gate();
    caller.on('fill', () => finish.opened);
    await caller.start();
    const fill = () => mesh.send(caller.id, 'fill');
    await Promise.all(Array.from({ length: 40 }, fill));
    await assert.rejects(fill(), { code: 'RESOURCE_EXHAUSTED', reason: 'MAILBOX_FULL' });
    await caller.send(agent.id, 'greeting.request', { name: 'Flo' });
    for (const name of ['Gil', 'Hal', 'Ida']) {
      const reply = await mesh.request(agent.id, 'greeting.request', { name });
      assert.deepEqual(reply.json, { text: `Hello, ${name}` });
    }
    finish.open();
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
});
