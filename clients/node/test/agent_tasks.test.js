import assert from 'node:assert/strict';
import { once } from 'node:events';
import { suite, test } from 'node:test';
import { Drop } from '../src/index.js';
import { ended, gate, useAgents } from './agents.js';

suite('agents and tasks:', { timeout: 120_000 }, () => {
  let mesh;
  const { agentOf } = useAgents((given) => ({ mesh } = given));

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
    const never = await ended(mesh, await mesh.assignTask('fail', 'never', options));
    assert.deepEqual([never.state, never.attempts, never.error.reason], ['failed', 1, 'POINTLESS']);
    const twice = await ended(mesh, await mesh.assignTask('fail', 'twice', options));
    assert.deepEqual([twice.state, twice.attempts, twice.result], ['completed', 2, null]);
    const always = await ended(mesh, await mesh.assignTask('fail', 'always', options));
    assert.deepEqual([always.state, always.attempts, always.error.message], ['failed', 2, 'no']);
    const policy = { agentId: agent.id, retry: { maxAttempts: 1 } };
    const strange = await ended(mesh, await mesh.assignTask('strange', 1, policy));
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
    const { state, error } = await ended(mesh, { taskId });
    assert.deepEqual([state, error.code], ['cancelled', 'CANCELLED']);
    const next = await ended(mesh, await mesh.assignTask('next', 1, { agentId: agent.id }));
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
});
