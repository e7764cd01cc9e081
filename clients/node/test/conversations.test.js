import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { Metadata, makeGenericClientConstructor } from '@grpc/grpc-js';
import { contract } from '../src/contract.js';
import { resolve } from '../src/endpoint.js';
import { useAgents } from './agents.js';

const service = contract['bxmesh.agent.v1.ConversationService'];
const ConversationClient = makeGenericClientConstructor(service, 'Conversations');

const kindOf = ({ conversationId, revision, eventTime, ...event }) => Object.keys(event)[0];

suite('conversations', { timeout: 120_000 }, () => {
  let server;
  const { agentOf } = useAgents((given) => ({ server } = given));

  test('stream, with agents in JavaScript', async (context) => {
    const participants = [];
    for (const answer of ['B', 'b.', { answer: 'A', confidence: 0.9 }]) {
      const agent = agentOf();
      agent.task('conversation.answer', ({ parameters: question }) =>
        question.message === 'Which is better?' ? answer : 'What?',
      );
      await agent.start();
      participants.push({ agentId: agent.id });
    }
    const { address, apiKey, credentials } = resolve(server);
    const client = new ConversationClient(address, credentials);
    context.after(() => client.close());
    const metadata = new Metadata();
    metadata.set('authorization', `Bearer ${apiKey}`);
    const spec = { message: 'Which is better?', participants };
    const events = [];
    for await (const { event } of client.streamConversation({ spec }, metadata)) events.push(event);
    assert.deepEqual(events.map(kindOf), [
      'started',
      'answered',
      'answered',
      'answered',
      'consensus',
      'turnEnded',
      'ended',
    ]);
    const { consensus, conversationId, state } = events.at(-1).ended;
    assert.equal(state, 'completed');
    assert.equal(consensus.text.toLowerCase()[0], 'b');
    const names = participants.map(({ agentId }) => agentId);
    assert.deepEqual(consensus.groups[0].participantIds, names.slice(0, 2));

    const afterRevision = events.at(-2).revision;
    const rest = client.streamConversation({ conversationId, afterRevision }, metadata);
    for await (const { event } of rest) assert.equal(kindOf(event), 'ended');
  });
});
