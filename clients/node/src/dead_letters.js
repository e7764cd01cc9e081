/** What could not be handled. */
import { checked, fromStatus } from './errors.js';
import { Message } from './messages.js';
import { described } from './tasks.js';
import { date } from './values.js';

/**
 * @typedef {object} DeadLetter
 * @property {string} deadLetterId
 * @property {Message} [message] what it was
 * @property {import('./tasks.js').TaskRecord} [task] what it was otherwise
 * @property {import('./errors.js').BxmeshError} error why it ended here
 * @property {number} attempts
 * @property {string} agentId the agent that gave it up; empty when none did
 * @property {Date} lastTime when it was given up
 */

/** Returns the latest dead letters that fit, newest first. */
export async function deadLetters(connection, filter, pageSize, operation) {
  checked('bxmesh.agent.v1.DeadLetterFilter', filter);
  const response = await connection.unary('listDeadLetters', { filter, pageSize }, operation);
  return response.deadLetters.map(letter);
}

/** @returns {DeadLetter} */
function letter({ deadLetterId, envelope, task, error, attempts, agentId, lastTime }) {
  return {
    deadLetterId,
    message: envelope ? new Message(envelope) : undefined,
    task: task ? described(task) : undefined,
    error: fromStatus(error),
    attempts,
    agentId,
    lastTime: date(lastTime),
  };
}
