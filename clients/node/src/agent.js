/** Agents: what others ask things of. */
import { once, setMaxListeners } from 'node:events';
import { Operation, bounded } from './calls.js';
import { BxmeshError, checked, invalid } from './errors.js';
import { Handlers } from './handlers.js';
import { JoinedLease, Lease } from './lease.js';
import { Mailbox } from './mailbox.js';
import { connectionOf } from './mesh.js';
import { duration, entries } from './values.js';

const START_MILLISECONDS = 60_000;
const DRAIN_MILLISECONDS = 30_000;
const CAPABILITY = /^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$/;

/** @typedef {string | {name: string, description?: string, timeout?: number}} Capability */

/** @typedef {import('./messages.js').DeliveredMessage} DeliveredMessage */
/** @typedef {import('./tasks.js').Task} Task */

/**
 * A member of the mesh that handles messages and tasks. It stays when the connection is lost or the
 * mesh restarts: it connects again, answers what it was handling, and registers again when its
 * lease is over.
 *
 * A message whose handler returns is settled; one whose handler throws comes again, after the
 * error's `retryAfter` where it has one; one whose handler throws `Drop` is a dead letter at once.
 */
export class Agent {
  #mesh;
  #connection;
  #registration;
  #handlers;
  #lease;
  #mailbox;
  #abort = new AbortController();
  #operation = new Operation({ signal: this.#abort.signal }, Infinity);
  #serving;
  #stopping;
  #failure;
  #settleClosed;

  /**
   * @param {import('./mesh.js').Mesh} mesh
   * @param {object} options
   * @param {string} options.id unique in the mesh
   * @param {string} options.type what kind of agent it is
   * @param {string} [options.version] of its software
   * @param {Capability[]} [options.capabilities] besides the types of its tasks; timeouts in
   *   milliseconds
   * @param {number} [options.concurrency] how much it handles at a time; 1
   * @param {Record<string, string>} [options.metadata]
   * @param {number} [options.leaseSeconds] how long it stays without a heartbeat; the server's
   * @param {string} [options.leaseId] that of another process, whose mailbox is shared then: this
   *   one does not register
   * @param {(error: Error, work: DeliveredMessage | Task) => void} [options.onError] hears what
   *   handlers throw; a process warning
   */
  constructor(mesh, options) {
    const { id, type, version, capabilities = [], concurrency = 1, metadata, ...rest } = options;
    const { leaseSeconds, leaseId, onError = warn, ...unknown } = rest;
    for (const name of Object.keys(unknown)) throw invalid(name, 'is no option of an agent');
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > 10_000) {
      throw invalid('concurrency', 'must be 1 to 10000');
    }
    // Every call that an agent makes listens to it.
    setMaxListeners(0, this.#abort.signal);
    this.#mesh = mesh;
    this.#connection = connectionOf(mesh);
    this.#registration = {
      agentId: id,
      agentType: type,
      version,
      capabilities: capabilities.map(capability),
      metadata: entries(metadata),
      maxConcurrentTasks: concurrency,
      leaseTtlSeconds: leaseSeconds,
    };
    this.#handlers = new Handlers(id, this.#connection, this.#operation, onError);
    this.#lease = leaseId ? new JoinedLease(leaseId) : this.#ownLease();
    /** Resolves when the agent has stopped; rejects with what ended it otherwise. */
    this.closed = new Promise((resolve, reject) => {
      this.#settleClosed = (error) => (error ? reject(error) : resolve());
    });
    this.closed.catch(() => {});
  }

  /** Its name. */
  get id() {
    return this.#registration.agentId;
  }

  /** Its lease, with which another process shares its mailbox; whoever knows it speaks for it. */
  get leaseId() {
    return this.#lease.leaseId;
  }

  /**
   * Handles messages of a type, of those that begin like it when it ends in "*", or with "*" of
   * all others.
   *
   * @param {string} messageType
   * @param {(message: DeliveredMessage) => unknown} handler
   */
  on(messageType, handler) {
    this.#assertNew();
    this.#handlers.addMessage(messageType, handler);
    return this;
  }

  /**
   * Does tasks of a type, which thereby is a capability where it is written like one.
   *
   * @param {string} taskType
   * @param {(task: Task) => unknown} handler returns the result, anything that JSON has
   */
  task(taskType, handler) {
    this.#assertNew();
    this.#handlers.addTask(taskType, handler);
    return this;
  }

  /**
   * Brings the agent into the mesh; returns when it takes work.
   *
   * @param {{timeout?: number, signal?: AbortSignal}} [options]
   */
  async start(options = {}) {
    this.#assertNew();
    const operation = new Operation(options, START_MILLISECONDS);
    const attached = new Promise((resolve, reject) => {
      this.#serving = this.#serve(resolve);
      this.#serving.then(() => reject(this.#failure ?? wrongTime(this.id, 'was stopped')));
    });
    try {
      await bounded(attached, operation, `${this.id} was not connected`);
    } catch (error) {
      this.#fail(error);
      await this.#serving;
      await this.#lease.release('it did not start');
      throw error;
    }
  }

  /**
   * Takes nothing new, waits until the handlers at work are done, and leaves the mesh.
   *
   * @param {{timeout?: number, reason?: string}} [options] after the timeout in milliseconds,
   *   30 s, the handlers' signals abort and what they handled goes to others
   */
  async stop({ timeout = DRAIN_MILLISECONDS, reason = '' } = {}) {
    this.#stopping ??= this.#stop(timeout, reason);
    await this.#stopping;
  }

  async [Symbol.asyncDispose]() {
    await this.stop();
  }

  /** Sends a message, see `Mesh.send`. */
  async send(recipient, messageType, value, options = {}) {
    return await this.#mesh.send(recipient, messageType, value, { sender: this.id, ...options });
  }

  /** Sends a message and returns the answer, see `Mesh.request`. */
  async request(recipient, messageType, value, options = {}) {
    return await this.#mesh.request(recipient, messageType, value, { sender: this.id, ...options });
  }

  /** Sends a message to all who fit, see `Mesh.broadcast`. */
  async broadcast(messageType, value, options = {}) {
    return await this.#mesh.broadcast(messageType, value, { sender: this.id, ...options });
  }

  #assertNew() {
    if (this.#serving || this.#stopping) throw wrongTime(this.id, 'was started or stopped before');
  }

  #ownLease() {
    const heartbeat = () => this.#heartbeat();
    const leave = () => {
      this.stop({ reason: 'asked to leave' }).catch((error) => this.#fail(error));
    };
    return new Lease(this.#connection, this.#registration, this.#operation, heartbeat, leave);
  }

  #offerTasks() {
    const { capabilities } = this.#registration;
    for (const name of this.#handlers.taskTypes) {
      if (!CAPABILITY.test(name) || capabilities.some((each) => each.name === name)) continue;
      capabilities.push({ name });
    }
  }

  /** Serves to the end; `#failure` says why when it was not asked for. */
  async #serve(attached) {
    this.#offerTasks();
    const { agentId, maxConcurrentTasks: concurrency } = this.#registration;
    const { messageTypes } = this.#handlers;
    this.#mailbox = new Mailbox(
      this.#connection,
      this.#lease,
      { agentId, messageTypes, concurrency },
      this.#operation,
      (delivery, abort) => this.#handlers.handle(delivery, abort),
      () => this.#lease.changed(),
    );
    const aborted = once(this.#abort.signal, 'abort');
    const fails = (error) => this.#fail(error);
    const serve = async () => {
      await this.#mailbox.serve(attached);
      await Promise.race([this.#mailbox.finished(), aborted]);
      this.#abort.abort();
    };
    await this.#lease.acquire().catch(fails);
    await Promise.all([this.#lease.keep().catch(fails), serve().catch(fails)]);
    const stopped = new BxmeshError('the agent has stopped', 'CANCELLED', { reason: 'AGENT_STOPPED' });
    this.#mailbox.abort(this.#failure ?? stopped);
    if (this.#failure) this.#settleClosed(this.#failure);
  }

  #fail(error) {
    this.#failure ??= error;
    this.#abort.abort();
  }

  async #stop(timeout, reason) {
    if (this.#serving) {
      const timer = setTimeout(() => this.#abort.abort(), timeout).unref();
      this.#mailbox.drain();
      this.#lease.changed();
      await this.#serving;
      clearTimeout(timer);
      await this.#lease.release(reason);
    }
    if (!this.#failure) this.#settleClosed();
  }

  #heartbeat() {
    const activeTasks = this.#mailbox.running;
    const currentLoad = Math.min(1, activeTasks / this.#registration.maxConcurrentTasks);
    const taking = currentLoad < 1 ? 'active' : 'busy';
    return { status: this.#stopping ? 'draining' : taking, currentLoad, activeTasks };
  }
}

function capability(given) {
  if (typeof given === 'string') return { name: given };
  const { timeout, ...rest } = given;
  return { ...checked('bxmesh.registry.v1.Capability', rest), timeout: duration(timeout) };
}

function warn(error, work) {
  process.emitWarning(`${work.type} ${work.id} failed: ${error}`, 'AgentWarning');
}

function wrongTime(id, message) {
  return new BxmeshError(`${id} ${message}`, 'FAILED_PRECONDITION', { reason: 'AGENT_STATE' });
}
