/** A connection to the mesh. */
import { randomUUID } from 'node:crypto';
import { bundleId, upload } from './bundles.js';
import { Connection, Operation } from './calls.js';
import { deadLetters } from './dead_letters.js';
import { discover } from './discovery.js';
import { resolve } from './endpoint.js';
import { checked } from './errors.js';
import { Answer } from './gradients.js';
import { toNpy } from './npy.js';
import { Message, broadcastMessage, envelopeOf, sendMessage } from './messages.js';
import { Session } from './session.js';
import { assignTask, described, watchTask } from './tasks.js';
import { coordinatesTensor } from './tensors.js';

const CALCULATION_MILLISECONDS = 600_000;
const TRANSFER_MILLISECONDS = 3_600_000;
const CALL_MILLISECONDS = 60_000;
const GRACE_MILLISECONDS = 5000;
const INLINE_BYTES = 2 * 1024 * 1024;

/** @typedef {import('./calls.js').CallOptions} CallOptions */
/** @typedef {import('./bundles.js').Source} Source */
/** @typedef {import('./gradients.js').GradientOptions} GradientOptions */

/** @typedef {import('./messages.js').MessageOptions} MessageOptions */
/** @typedef {import('./tasks.js').TaskOptions} TaskOptions */
/** @typedef {import('./tasks.js').TaskRecord} TaskRecord */

/** @typedef {{modelId: string, spec: object, summary: {atoms: number, spaceGroup: string}}} Model */

/** Returns the connection that a mesh shares with its agents. */
export let connectionOf;

/**
 * A connection to the mesh. Every method throws `BxmeshError`; calls are repeated while the mesh is
 * unavailable.
 */
export class Mesh {
  #connection;

  static {
    connectionOf = (mesh) => mesh.#connection;
  }

  /**
   * @param {import('./endpoint.js').EndpointOptions & {retries?: number}} [options] repeats a call
   *   `retries` times; 4
   */
  constructor({ retries = 4, ...endpoint } = {}) {
    this.#connection = new Connection(resolve(endpoint), retries);
  }

  /** Where the mesh is. */
  get address() {
    return this.#connection.address;
  }

  /**
   * Stores a file or bytes and returns the bundle, which is named by its content.
   *
   * @param {string | Uint8Array} source a path or content
   * @param {{kind: string, displayName?: string} & CallOptions} options the kind is macromolecule,
   *   reflections, restraints, coordinates, …
   * @returns {Promise<{bundleId: string, kind: string, sizeBytes: number}>}
   */
  async upload(source, { kind, displayName, ...options }) {
    checked('bxmesh.geometry.v1.UploadBundleHeader', { kind });
    const operation = new Operation(options, TRANSFER_MILLISECONDS);
    return await upload(this.#connection, source, { kind, displayName }, operation);
  }

  /**
   * Makes a model of a macromolecule, optionally with reflections and restraint dictionaries.
   *
   * @param {Source} macromolecule
   * @param {object} [inputs]
   * @param {Source} [inputs.reflections]
   * @param {Source[]} [inputs.restraints]
   * @param {object} [inputs.options] hydrogens, scatteringTable, dataLabels, rFreeFlagsLabel,
   *   generateRFreeFlags, dMin, dMax
   * @param {CallOptions} [call]
   * @returns {Promise<Model>}
   */
  async createModel(macromolecule, { reflections, restraints = [], options = {} } = {}, call = {}) {
    checked('bxmesh.geometry.v1.ModelOptions', options);
    const operation = new Operation(call, CALCULATION_MILLISECONDS);
    const id = (source, kind) => this.#bundleId(source, kind, operation);
    const spec = { macromolecule: await id(macromolecule, 'macromolecule'), restraints: [], options };
    if (reflections !== undefined) spec.reflections = await id(reflections, 'reflections');
    for (const source of restraints) spec.restraints.push(await id(source, 'restraints'));
    const request = { requestId: randomUUID(), spec };
    const { model } = await this.#connection.unary('createModel', request, operation);
    return model;
  }

  /**
   * Computes energies and gradients at the model's coordinates or at given ones, in angstrom. A
   * sample that cannot be computed has its own status and zero gradients.
   *
   * @param {Model | string} model
   * @param {GradientOptions & CallOptions & {coordinates?: import('./tensors.js').Coordinates,
   *   onProgress?: (progress: import('./gradients.js').Progress) => void}} [options]
   * @returns {Promise<import('./gradients.js').Gradients>}
   */
  async gradients(model, { coordinates, onProgress, ...rest } = {}) {
    const { call, options } = split(rest);
    const operation = new Operation(call, CALCULATION_MILLISECONDS);
    const request = { requestId: randomUUID(), modelId: modelId(model), options };
    if (coordinates !== undefined) {
      request.coordinates = await this.#coordinates(coordinates, operation);
    }
    const begin = () => new Answer(operation.traceId, onProgress);
    return await this.#connection.collect('computeGradients', request, operation, begin);
  }

  /**
   * Opens a session on a worker that keeps the model warm. `await using` or `close` ends it.
   *
   * @param {Model | string} model
   * @param {GradientOptions & CallOptions} [options] the timeout is for the opening and each step,
   *   the signal for the opening
   * @returns {Promise<Session>}
   */
  async session(model, options = {}) {
    const { call, options: gradients } = split(options);
    const opening = { modelId: modelId(model), options: gradients };
    return await Session.open(this.#connection, opening, call, CALCULATION_MILLISECONDS);
  }

  /**
   * Sends a message to an agent.
   *
   * @param {string} recipient
   * @param {string} messageType such as greeting.request
   * @param {unknown} [value] anything that JSON has
   * @param {MessageOptions & CallOptions} [options]
   * @returns {Promise<import('./messages.js').Sent>}
   */
  async send(recipient, messageType, value, options = {}) {
    const { call, way, fields } = message(options);
    const operation = new Operation(call, CALL_MILLISECONDS);
    const envelope = { ...envelopeOf(messageType, value, fields), recipient };
    const { messageId, receivers, held } = await sendMessage(
      this.#connection,
      envelope,
      way,
      operation,
    );
    return { messageId, receivers, held };
  }

  /**
   * Sends a message to an agent and returns the answer. When the agent gives the message up, its
   * error is thrown.
   *
   * @param {string} recipient
   * @param {string} messageType
   * @param {unknown} [value]
   * @param {MessageOptions & CallOptions} [options] the timeout is for the answer
   * @returns {Promise<Message>}
   */
  async request(recipient, messageType, value, { timeout = CALL_MILLISECONDS, ...options } = {}) {
    const { call, way, fields } = message(options);
    const operation = new Operation(call, timeout + GRACE_MILLISECONDS);
    const envelope = { ...envelopeOf(messageType, value, fields), recipient };
    const waiting = { ...way, replyTimeout: timeout };
    const { reply } = await sendMessage(this.#connection, envelope, waiting, operation);
    const answer = new Message(reply);
    if (answer.error) throw answer.error;
    return answer;
  }

  /**
   * Sends a message to every live agent that fits.
   *
   * @param {string} messageType
   * @param {unknown} [value]
   * @param {MessageOptions & CallOptions & {capabilities?: string[], agentType?: string,
   *   includeSender?: boolean}} [options] the agents that offer all the capabilities and are of the
   *   type; all
   * @returns {Promise<{messageId: string, recipients: number, refusedAgentIds: string[]}>}
   */
  async broadcast(messageType, value, { capabilities, agentType, includeSender, ...options } = {}) {
    const { call, way, fields } = message(options);
    const operation = new Operation(call, CALL_MILLISECONDS);
    const { deliveryMode } = way;
    const whom = { deliveryMode, capabilities, agentType, includeSender };
    const envelope = envelopeOf(messageType, value, fields);
    return await broadcastMessage(this.#connection, envelope, whom, operation);
  }

  /**
   * Finds the live agents that offer all of some capabilities, the one with most free capacity
   * first.
   *
   * @param {string[]} capabilities
   * @param {{agentType?: string, version?: string, metadata?: Record<string, string>} & CallOptions}
   *   [options] only of this type and version, with these facts
   * @returns {Promise<import('./discovery.js').Discovery>}
   */
  async discover(capabilities, { timeout, signal, traceparent, ...filter } = {}) {
    const operation = new Operation({ timeout, signal, traceparent }, CALL_MILLISECONDS);
    return await discover(this.#connection, { capabilities, ...filter }, operation);
  }

  /**
   * Gives a task to an agent that can do it, and to another when that one dies.
   *
   * @param {string} taskType such as geometry.minimize
   * @param {unknown} parameters anything that JSON has
   * @param {TaskOptions} [options]
   * @param {CallOptions} [call]
   * @returns {Promise<TaskRecord>}
   */
  async assignTask(taskType, parameters, options = {}, call = {}) {
    const operation = new Operation(call, CALL_MILLISECONDS);
    return await assignTask(this.#connection, taskType, parameters, options, operation);
  }

  /**
   * Follows a task to its end, also over a lost connection.
   *
   * @param {string} taskId
   * @param {{afterRevision?: number} & CallOptions} [options] only later changes; as it stands
   *   first
   * @returns {AsyncGenerator<TaskRecord>}
   */
  watchTask(taskId, { afterRevision = 0, ...call } = {}) {
    return watchTask(this.#connection, taskId, afterRevision, new Operation(call, Infinity));
  }

  /**
   * Returns how a task stands.
   *
   * @param {string} taskId
   * @param {CallOptions} [call]
   * @returns {Promise<TaskRecord>}
   */
  async task(taskId, call = {}) {
    const operation = new Operation(call, CALL_MILLISECONDS);
    return described((await this.#connection.unary('getTask', { taskId }, operation)).task);
  }

  /**
   * Cancels a task; the agent that has it is told.
   *
   * @param {string} taskId
   * @param {{reason?: string, cancelChildren?: boolean} & CallOptions} [options]
   * @returns {Promise<TaskRecord>} as it then stands
   */
  async cancelTask(taskId, { reason, cancelChildren, ...call } = {}) {
    const operation = new Operation(call, CALL_MILLISECONDS);
    const request = { requestId: randomUUID(), taskId, reason, cancelChildren };
    return described((await this.#connection.unary('cancelTask', request, operation)).task);
  }

  /**
   * Returns the latest dead letters, newest first.
   *
   * @param {{agentId?: string, type?: string, reason?: string, pageSize?: number} & CallOptions}
   *   [options] only out of this agent's mailbox, of this type, with this reason
   * @returns {Promise<import('./dead_letters.js').DeadLetter[]>}
   */
  async deadLetters({ pageSize, timeout, signal, traceparent, ...filter } = {}) {
    const operation = new Operation({ timeout, signal, traceparent }, CALL_MILLISECONDS);
    return await deadLetters(this.#connection, filter, pageSize, operation);
  }

  /** Closes the connection; calls and sessions under way fail with CANCELLED. */
  close() {
    this.#connection.close();
  }

  async [Symbol.asyncDispose]() {
    this.close();
  }

  async #bundleId(source, kind, operation) {
    return bundleId(source) ?? (await upload(this.#connection, source, { kind }, operation)).bundleId;
  }

  async #coordinates(coordinates, operation) {
    const tensor = coordinatesTensor(coordinates);
    if (tensor.data.length <= INLINE_BYTES) return { tensor };
    return { bundleId: await this.#bundleId(toNpy(tensor), 'coordinates', operation) };
  }
}

function split({ timeout, signal, traceparent, ...options }) {
  checked('bxmesh.geometry.v1.GradientOptions', options);
  return { call: { timeout, signal, traceparent }, options };
}

function message({ timeout, signal, traceparent, mode, hold, ...fields }) {
  const way = { deliveryMode: mode, holdForRecipient: hold };
  return { call: { timeout, signal, traceparent }, way, fields };
}

function modelId(model) {
  return typeof model === 'string' ? model : model.modelId;
}
