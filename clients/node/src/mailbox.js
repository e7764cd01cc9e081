/** An agent's connection to its mailbox. */
import { randomUUID } from 'node:crypto';
import { Operation } from './calls.js';
import { BxmeshError, fromStatus, toStatus } from './errors.js';
import { persist } from './persistence.js';

const LEASE_OVER = ['LEASE_LOST', 'AGENT_NOT_REGISTERED'];
const MOST_WAITING = 1000;

/**
 * Takes deliveries as long as there is room, has them handled and answers them. What was not
 * answered when the connection was lost is answered on the next one.
 */
export class Mailbox {
  #connection;
  #lease;
  #hello;
  #concurrency;
  #operation;
  #handle;
  #onLoad;
  #done = new AbortController();
  /** By name, what is handled, or answered and not known to have been heard. */
  #held = new Map();
  /** Handlers at work, with what stops them. */
  #running = new Map();
  #runningDirect = new Map();
  #waitingDirect = [];
  #call;
  #draining = false;

  /**
   * @param {import('./calls.js').Connection} connection
   * @param {{acquire: () => Promise<string>, over: (leaseId: string) => void}} lease
   * @param {object} options
   * @param {string} options.agentId
   * @param {string[]} options.messageTypes
   * @param {number} options.concurrency deliveries at a time, and as many direct messages
   * @param {import('./calls.js').Operation} operation whose signal ends it
   * @param {(delivery: object, abort: AbortController) => Promise<object>} handle returns an
   *   answer, and never throws
   * @param {() => void} onLoad is called when more or less is handled than before
   */
  constructor(connection, lease, { agentId, messageTypes, concurrency }, operation, handle, onLoad) {
    this.#connection = connection;
    this.#lease = lease;
    this.#hello = { agentId, messageTypes, connectionId: randomUUID() };
    this.#concurrency = concurrency;
    const { signal, traceparent } = operation;
    const either = AbortSignal.any([signal, this.#done.signal]);
    this.#operation = new Operation({ signal: either, traceparent }, Infinity);
    this.#handle = handle;
    this.#onLoad = onLoad;
  }

  /** How many handlers are at work. */
  get running() {
    return this.#running.size + this.#runningDirect.size;
  }

  /**
   * Serves the mailbox until it is drained or the operation's signal aborts.
   *
   * @param {() => void} attached is called when it is connected
   */
  async serve(attached) {
    await persist(this.#connection, this.#operation, async () => {
      const leaseId = await this.#lease.acquire();
      try {
        await this.#attach(leaseId, attached);
      } catch (error) {
        if (LEASE_OVER.includes(error.reason)) this.#lease.over(leaseId);
        else if (!refusesAnswer(error) || !this.#takeBackAnswers(error)) throw error;
      }
      return this.#drained;
    });
  }

  /** Takes nothing new any more; `serve` returns when all is answered. */
  drain() {
    this.#draining = true;
    this.#call?.write({ drain: {} });
    this.#leave();
  }

  /** Waits for the handlers that are at work. */
  async finished() {
    while (this.running > 0) {
      await Promise.all([...this.#running.keys(), ...this.#runningDirect.keys()]);
    }
  }

  /** Tells the handlers that are at work to stop. */
  abort(reason) {
    this.#waitingDirect = [];
    for (const abort of [...this.#running.values(), ...this.#runningDirect.values()]) {
      abort.abort(reason);
    }
  }

  get #drained() {
    return this.#draining && this.#held.size === 0;
  }

  async #attach(leaseId, attached) {
    const metadata = this.#connection.metadata(this.#operation);
    const call = this.#connection.client.connect(metadata);
    let extension;
    try {
      await this.#connection.held(call, this.#operation, async () => {
        call.write({ hello: { ...this.#hello, leaseId, heldDeliveryIds: [...this.#held.keys()] } });
        for await (const { welcome, delivery, settled, cancel } of call) {
          if (welcome) {
            const milliseconds = (welcome.deliveryTtlSeconds * 1e3) / 3;
            extension = setInterval(() => this.#extend(call), milliseconds).unref();
            this.#welcome(call, welcome);
            attached();
          }
          if (delivery?.deliveryId) this.#take(delivery);
          else if (delivery) this.#takeDirect(delivery);
          if (settled) this.#settle(settled);
          if (cancel) this.#held.get(cancel.deliveryId)?.abort.abort(fromStatus(cancel.reason));
        }
      });
    } finally {
      clearInterval(extension);
      this.#call = undefined;
    }
  }

  #welcome(call, { lostDeliveryIds }) {
    for (const deliveryId of lostDeliveryIds) this.#lose(deliveryId);
    for (const { answer } of this.#held.values()) if (answer) call.write({ answer });
    this.#call = call;
    const room = this.#concurrency - this.#running.size;
    if (this.#draining) call.write({ drain: {} });
    else if (room > 0) call.write({ credit: { deliveries: room } });
  }

  #extend(call) {
    if (this.#held.size > 0) call.write({ extend: {} });
  }

  async #take(delivery) {
    const { deliveryId } = delivery;
    if (this.#held.has(deliveryId)) return this.#takeAgain(deliveryId);
    const entry = { abort: new AbortController(), answer: undefined, takenBack: false };
    this.#held.set(deliveryId, entry);
    const answer = await this.#run(this.#running, delivery, entry.abort);
    if (this.#held.get(deliveryId) === entry) {
      entry.answer = { deliveryId, ...answer };
      this.#call?.write({ answer: entry.answer });
    }
    if (!this.#draining) this.#call?.write({ credit: { deliveries: 1 } });
  }

  /** What came twice is handled once, and needs no room. */
  #takeAgain(deliveryId) {
    const { answer } = this.#held.get(deliveryId);
    if (answer) this.#call?.write({ answer });
    this.#call?.write({ credit: { deliveries: 1 } });
  }

  /** Takes back the answers of which the mesh refused one, so as not to send it forever. */
  #takeBackAnswers(refusal) {
    const error = toStatus(refusal);
    const suspect = ({ answer, takenBack }) => !takenBack && (answer?.reply || answer?.error);
    const suspects = [...this.#held].filter(([, entry]) => suspect(entry));
    for (const [deliveryId, entry] of suspects) {
      entry.takenBack = true;
      entry.answer = { deliveryId, verdict: 'retry', error };
    }
    return suspects.length > 0;
  }

  #takeDirect(delivery) {
    if (this.#waitingDirect.length < MOST_WAITING) this.#waitingDirect.push(delivery);
    this.#nextDirect();
  }

  async #nextDirect() {
    if (this.#runningDirect.size >= this.#concurrency || !this.#waitingDirect.length) return;
    await this.#run(this.#runningDirect, this.#waitingDirect.shift(), new AbortController());
    this.#nextDirect();
  }

  async #run(running, delivery, abort) {
    const work = this.#handle(delivery, abort);
    running.set(work, abort);
    this.#onLoad();
    const answer = await work;
    running.delete(work);
    this.#onLoad();
    return answer;
  }

  #settle({ deliveryId, status, leaseExpireTime }) {
    if (status?.code) this.#lose(deliveryId);
    else if (!leaseExpireTime) this.#held.delete(deliveryId);
    this.#leave();
  }

  #lose(deliveryId) {
    const entry = this.#held.get(deliveryId);
    this.#held.delete(deliveryId);
    const reason = { reason: 'LEASE_LOST' };
    const message = 'the delivery went to another; stop working on it';
    entry?.abort.abort(new BxmeshError(message, 'FAILED_PRECONDITION', reason));
  }

  /** The mesh ends the stream of a drained agent; where there is none, nobody else does. */
  #leave() {
    if (this.#drained && !this.#call) this.#done.abort();
  }
}

/** Whether the mesh may have ended a stream because of an answer, which it would again. */
function refusesAnswer({ code, reason }) {
  return code === 'INVALID_ARGUMENT' || reason === 'MAILBOX_FULL';
}
