/** The lease under which an agent is in the mesh. */
import { randomUUID } from 'node:crypto';
import { Operation } from './calls.js';
import { BxmeshError } from './errors.js';
import { persist } from './persistence.js';

const CALL_MILLISECONDS = 30_000;
const SOON_MILLISECONDS = 100;

/** An agent's registration, which heartbeats keep and which is made again when it is over. */
export class Lease {
  #connection;
  #registration;
  #operation;
  #heartbeat;
  #onDrain;
  #leaseId;
  #granted;
  #pending;
  #beat;
  #soon;

  /**
   * @param {import('./calls.js').Connection} connection
   * @param {object} registration what RegisterAgent takes
   * @param {import('./calls.js').Operation} operation whose signal ends it
   * @param {() => object} heartbeat what a heartbeat says now
   * @param {() => void} onDrain is called when the mesh wants the agent to leave
   */
  constructor(connection, registration, operation, heartbeat, onDrain) {
    this.#connection = connection;
    this.#registration = registration;
    this.#operation = operation;
    this.#heartbeat = heartbeat;
    this.#onDrain = onDrain;
  }

  /** The lease that was granted last. */
  get leaseId() {
    return this.#granted?.leaseId;
  }

  /** Returns a lease that is not known to be over; registers the agent where there is none. */
  async acquire() {
    if (this.#leaseId) return this.#leaseId;
    this.#pending ??= this.#register().finally(() => {
      this.#pending = undefined;
    });
    return await this.#pending;
  }

  /** Says that a lease is over. */
  over(leaseId) {
    if (this.#leaseId === leaseId) this.#leaseId = undefined;
  }

  /** Sends heartbeats until the operation's signal aborts. */
  async keep() {
    await persist(this.#connection, this.#operation, async () => {
      await this.acquire();
      await this.#stream();
      return false;
    });
  }

  /** Sends a heartbeat soon, since what it says has changed. */
  changed() {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      this.#beat?.();
    }, SOON_MILLISECONDS).unref();
  }

  /** Takes the agent out of the mesh; out of one that cannot be reached it falls by itself. */
  async release(reason) {
    if (!this.#leaseId) return;
    const { agentId } = this.#registration;
    const request = { requestId: randomUUID(), agentId, leaseId: this.#leaseId, reason };
    try {
      await this.#unary('deregisterAgent', request, undefined);
    } catch (error) {
      if (!(error instanceof BxmeshError)) throw error;
    }
  }

  async #stream() {
    const call = this.#connection.client.keepAlive(this.#connection.metadata(this.#operation));
    let unanswered = 0;
    const beat = () => {
      unanswered += 1;
      if (this.#leaseId) call.write({ leaseId: this.#leaseId, ...this.#heartbeat() });
    };
    // An answer that is a whole interval late does not come.
    const regular = () => (unanswered > 0 ? call.cancel() : beat());
    const timer = setInterval(regular, (this.#granted.leaseTtlSeconds * 1e3) / 3).unref();
    this.#beat = beat;
    try {
      await this.#connection.held(call, this.#operation, async () => {
        beat();
        for await (const { leaseId, leaseTtlSeconds, requestedStatus } of call) {
          unanswered = 0;
          if (leaseTtlSeconds === 0) {
            this.over(leaseId);
            await this.acquire();
            beat();
          }
          if (requestedStatus === 'draining') this.#onDrain();
        }
      });
    } finally {
      clearInterval(timer);
      this.#beat = undefined;
    }
  }

  async #register() {
    if (this.#granted) await this.#assertNotReplaced();
    const request = { ...this.#registration, requestId: randomUUID() };
    this.#granted = await this.#unary('registerAgent', request, this.#operation.signal);
    this.#leaseId = this.#granted.leaseId;
    return this.#leaseId;
  }

  /** Two processes that took the name from each other in turn would both be of no use. */
  async #assertNotReplaced() {
    const { agentId } = this.#registration;
    const { seconds, nanos } = this.#granted.agent.registerTime;
    let agent;
    try {
      ({ agent } = await this.#unary('getAgent', { agentId }, this.#operation.signal));
    } catch (error) {
      if (error.code === 'NOT_FOUND') return;
      throw error;
    }
    const { registerTime } = agent;
    if (registerTime.seconds === seconds && registerTime.nanos === nanos) return;
    const message = `another process has registered ${agentId}; this one has ended`;
    throw new BxmeshError(message, 'FAILED_PRECONDITION', { reason: 'AGENT_REPLACED' });
  }

  async #unary(method, request, signal) {
    const { traceparent } = this.#operation;
    const operation = new Operation({ signal, traceparent }, CALL_MILLISECONDS);
    return await this.#connection.unary(method, request, operation);
  }
}

/** The registration of another process, whose mailbox is shared. */
export class JoinedLease {
  #over = false;

  constructor(leaseId) {
    this.leaseId = leaseId;
  }

  async acquire() {
    if (!this.#over) return this.leaseId;
    const message = 'the lease that was joined is over';
    throw new BxmeshError(message, 'FAILED_PRECONDITION', { reason: 'LEASE_LOST' });
  }

  over() {
    this.#over = true;
  }

  /** Heartbeats are for the process that registered. */
  async keep() {}

  changed() {}

  async release() {}
}
