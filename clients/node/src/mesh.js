/** A connection to the mesh. */
import { randomUUID } from 'node:crypto';
import { bundleId, upload } from './bundles.js';
import { Connection, Operation } from './calls.js';
import { resolve } from './endpoint.js';
import { checked } from './errors.js';
import { Answer } from './gradients.js';
import { toNpy } from './npy.js';
import { Session } from './session.js';
import { coordinatesTensor } from './tensors.js';

const CALCULATION_MILLISECONDS = 600_000;
const TRANSFER_MILLISECONDS = 3_600_000;
const INLINE_BYTES = 2 * 1024 * 1024;

/** @typedef {import('./calls.js').CallOptions} CallOptions */
/** @typedef {import('./bundles.js').Source} Source */
/** @typedef {import('./gradients.js').GradientOptions} GradientOptions */

/** @typedef {{modelId: string, spec: object, summary: {atoms: number, spaceGroup: string}}} Model */

/**
 * A connection to the mesh. Every method throws `BxmeshError`; calls are repeated while the mesh is
 * unavailable.
 */
export class Mesh {
  #connection;

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

function modelId(model) {
  return typeof model === 'string' ? model : model.modelId;
}
