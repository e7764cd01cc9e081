/** What an agent does with its deliveries. */
import { randomUUID } from 'node:crypto';
import { Operation } from './calls.js';
import { BxmeshError, Drop, invalid, toStatus } from './errors.js';
import { DeliveredMessage, envelopeIn, errorReport, sendMessage } from './messages.js';
import { passes } from './persistence.js';
import { Task } from './tasks.js';
import { duration, payload } from './values.js';

const SEND_MILLISECONDS = 30_000;
const REPORT_MILLISECONDS = 600_000;
const MOST_RETRY_MILLISECONDS = 86_400_000;

/** The handlers of an agent, by the types of messages and tasks. */
export class Handlers {
  #agentId;
  #connection;
  #operation;
  #onError;
  #messages = new Map();
  #tasks = new Map();

  /**
   * @param {string} agentId
   * @param {import('./calls.js').Connection} connection
   * @param {import('./calls.js').Operation} operation whose signal ends what is said about tasks
   * @param {(error: unknown, work: DeliveredMessage | Task) => void} onError
   */
  constructor(agentId, connection, operation, onError) {
    this.#agentId = agentId;
    this.#connection = connection;
    this.#operation = operation;
    this.#onError = onError;
  }

  addMessage(messageType, handler) {
    add(this.#messages, messageType, handler);
  }

  addTask(taskType, handler) {
    add(this.#tasks, taskType, handler);
  }

  /** The types of messages that are handled, as Connect takes them; empty for all. */
  get messageTypes() {
    return this.#messages.has('*') ? [] : [...this.#messages.keys()];
  }

  /** The types of tasks that are done. */
  get taskTypes() {
    return [...this.#tasks.keys()];
  }

  /**
   * Handles a delivery and returns the answer to it. It never throws.
   *
   * @param {object} delivery
   * @param {AbortController} abort tells the handler to stop
   */
  async handle(delivery, abort) {
    return await (delivery.task ? this.#task(delivery, abort) : this.#message(delivery, abort));
  }

  async #message(delivery, { signal }) {
    const send = (answer) => this.#sendDirect(message, answer);
    const message = new DeliveredMessage(envelopeIn(delivery), delivery, signal, send);
    try {
      await this.#handlerOf(this.#messages, 'message', message.type)(message);
      return { verdict: 'ack', reply: message.answer };
    } catch (error) {
      this.#tell(error, message);
      const last = message.attempt === message.maxAttempts;
      if (!message.direct && !last && !(error instanceof Drop)) return again(error);
      const reply = errorReport(message, error);
      if (message.direct && reply) await send(reply).catch(() => {});
      return { verdict: 'drop', error: toStatus(error), reply };
    }
  }

  async #task(delivery, abort) {
    const { signal } = abort;
    const task = new Task(delivery, signal, (progress) =>
      this.#report(delivery, abort, { progress }, 1),
    );
    let report;
    try {
      await task.progress(0);
      signal.throwIfAborted();
      const result = await this.#handlerOf(this.#tasks, 'task', task.type)(task);
      report = { result: payload(result) ?? {} };
    } catch (error) {
      if (!signal.aborted) this.#tell(error, task);
      report = { error: toStatus(signal.aborted ? signal.reason : error) };
    }
    try {
      if (signal.reason?.reason !== 'LEASE_LOST') {
        await this.#report(delivery, abort, report, Infinity);
      }
    } catch (error) {
      if (error.reason !== 'LEASE_LOST') {
        this.#tell(error, task);
        return again(error);
      }
    }
    return { verdict: 'ack' };
  }

  async #report({ deliveryId, task }, abort, report, retries) {
    const options = { signal: this.#operation.signal };
    const operation = new Operation(options, REPORT_MILLISECONDS, retries);
    const request = { requestId: randomUUID(), taskId: task.taskId, deliveryId, ...report };
    try {
      const { cancelRequested } = await this.#connection.unary('reportTask', request, operation);
      if (!cancelRequested) return;
      const reason = { reason: 'TASK_CANCELLED' };
      abort.abort(new BxmeshError('the task was cancelled', 'CANCELLED', reason));
    } catch (error) {
      // Progress that does not get through is no reason to give the work up.
      if (report.progress && passes(error)) return;
      if (error.reason === 'LEASE_LOST') abort.abort(error);
      throw error;
    }
  }

  async #sendDirect(message, answer) {
    const { signal, traceparent } = message;
    const operation = new Operation({ signal, traceparent }, SEND_MILLISECONDS);
    const envelope = {
      ...answer,
      sender: this.#agentId,
      recipient: message.replyTo,
      correlationId: message.id,
      conversationId: message.conversationId,
    };
    await sendMessage(this.#connection, envelope, { deliveryMode: 'direct' }, operation);
  }

  /** Returns the handler of a type, or that of its longest beginning. */
  #handlerOf(handlers, kind, type) {
    if (handlers.has(type)) return handlers.get(type);
    const fits = (name) => name.endsWith('*') && type.startsWith(name.slice(0, -1));
    const [name] = [...handlers.keys()].filter(fits).sort((a, b) => b.length - a.length);
    if (name !== undefined) return handlers.get(name);
    const metadata = { agent_id: this.#agentId };
    const reason = { code: 'UNIMPLEMENTED', reason: 'UNHANDLED', metadata };
    throw new Drop(`${this.#agentId} has no handler for ${kind}s of the type ${type}`, reason);
  }

  #tell(error, work) {
    try {
      this.#onError(error, work);
    } catch (another) {
      process.emitWarning(another);
    }
  }
}

function add(handlers, type, handler) {
  if (typeof handler !== 'function') throw invalid('handler', 'must be a function');
  if (typeof type !== 'string' || type === '') throw invalid('type', 'must be a name');
  handlers.set(type, handler);
}

function again(error) {
  const after = error?.retryAfter;
  const bounded = after >= 0 ? Math.min(after, MOST_RETRY_MILLISECONDS) : undefined;
  return { verdict: 'retry', retryAfter: duration(bounded), error: toStatus(error) };
}
