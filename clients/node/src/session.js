/** Sessions: coordinates in, gradients out, step after step, on a warm worker. */
import { Operation, REATTACHES, bounded } from './calls.js';
import { BxmeshError } from './errors.js';
import { StepAnswers } from './gradients.js';
import { coordinatesTensor, tensorChunks } from './tensors.js';

const INLINE_BYTES = 2 * 1024 * 1024;
const FAREWELL_MILLISECONDS = 5000;
const MOST_UNANSWERED = 32;

/**
 * A session on the mesh, opened by `Mesh.session`. A lost connection is resumed: the session
 * re-attaches with its frozen scales, and steps that are not answered yet are sent again.
 */
export class Session {
  #connection;
  #opening;
  #operation;
  #streams;
  #opened;
  #call;
  #unanswered = new Map();
  #nextStep = 0;
  #serving;
  #closing = false;
  #stop = new AbortController();
  #error;

  /** @package */
  constructor(connection, opening, options, timeout) {
    this.#connection = connection;
    this.#opening = opening;
    this.#operation = new Operation(options, timeout);
    const { traceparent } = this.#operation;
    this.#streams = new Operation({ signal: this.#stop.signal, traceparent }, Infinity);
  }

  /** @package */
  static async open(connection, opening, options, timeout) {
    const session = new Session(connection, opening, options, timeout);
    const ready = new Promise((resolve, reject) => {
      session.#serving = session.#serve(resolve).catch(reject);
    });
    try {
      await bounded(ready, session.#operation, 'the session did not open');
    } catch (error) {
      await session.#hangUp();
      throw error;
    }
    return session;
  }

  /** The session's name. */
  get sessionId() {
    return this.#opened.sessionId;
  }

  /** The worker that serves it. */
  get workerId() {
    return this.#opened.workerId;
  }

  /** Atoms, N. */
  get atoms() {
    return this.#opened.atoms;
  }

  /** The engine that evaluates geometry. */
  get engine() {
    return this.#opened.engine;
  }

  /** The X-ray agreement at the start; null where the target has none. */
  get xray() {
    return this.#opened.xray;
  }

  /** The trace of the session, 32 hexadecimal digits. */
  get traceId() {
    return this.#operation.traceId;
  }

  /**
   * Returns energies and gradients at coordinates in angstrom. Up to 32 steps may be under way;
   * they are answered in order.
   *
   * @param {import('./tensors.js').Coordinates} coordinates [N, 3] or, with a shape, [B, N, 3]
   * @param {object} [options]
   * @param {boolean} [options.refreshScales] computes the X-ray scales anew at these coordinates
   *   before the step
   * @param {number} [options.timeout] milliseconds
   * @param {AbortSignal} [options.signal] gives up waiting for the answer
   * @returns {Promise<import('./gradients.js').Evaluation & {stepId: number}>}
   */
  async step(coordinates, { refreshScales = false, timeout, signal } = {}) {
    signal?.throwIfAborted();
    const tensor = coordinatesTensor(coordinates);
    if (this.#error) throw this.#error;
    if (this.#unanswered.size >= MOST_UNANSWERED) {
      const message = `${MOST_UNANSWERED} steps are not answered yet; await some of them first`;
      throw new BxmeshError(message, 'RESOURCE_EXHAUSTED', { reason: 'WINDOW_FULL' });
    }
    const step = { stepId: this.#nextStep, tensor, refreshScales };
    this.#nextStep += 1;
    const answer = new Promise((resolve, reject) => {
      this.#unanswered.set(step.stepId, { step, resolve, reject });
    });
    if (this.#call) send(this.#call, step);
    const { traceparent, timeout: usual } = this.#operation;
    const waiting = new Operation({ timeout, signal, traceparent }, usual);
    return await bounded(answer, waiting, `step ${step.stepId} was not answered`);
  }

  /** Ends the session for good; steps that are not answered soon fail with CANCELLED. */
  async close() {
    if (!this.#closing && this.#call) {
      this.#closing = true;
      this.#call.write({ close: {} });
      this.#call.end();
      const farewell = AbortSignal.timeout(FAREWELL_MILLISECONDS);
      farewell.addEventListener('abort', () => this.#stop.abort(), { once: true });
      await this.#serving;
    }
    await this.#hangUp();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  async #hangUp() {
    this.#closing = true;
    this.#stop.abort();
    await this.#serving;
  }

  async #serve(ready) {
    const { traceId } = this.#operation;
    const closed = { reason: 'SESSION_CLOSED', traceId };
    let failure = new BxmeshError('the session is closed', 'CANCELLED', closed);
    const progress = { failures: 0 };
    try {
      while (!this.#closing) {
        try {
          await this.#attach(ready, progress);
        } catch (error) {
          const most = this.#opened ? REATTACHES : this.#connection.retries;
          if (error.code !== 'UNAVAILABLE' || progress.failures >= most) throw error;
          await this.#streams.pause(progress.failures);
          progress.failures += 1;
        }
      }
    } catch (error) {
      if (!this.#closing) failure = error;
    }
    this.#error = failure;
    for (const { reject } of this.#unanswered.values()) reject(failure);
    this.#unanswered.clear();
    if (!this.#opened) throw failure;
  }

  /** Serves one stream to its end. */
  async #attach(ready, progress) {
    const { traceId } = this.#streams;
    const call = this.#connection.client.streamGradients(this.#connection.metadata(this.#streams));
    const answers = new StepAnswers();
    try {
      await this.#connection.held(call, this.#streams, async () => {
        const open = this.#opened ? this.#reopening() : this.#opening;
        call.write({ open });
        for await (const response of call) {
          if (response.opened) {
            this.#opened = response.opened;
            for (const { step } of this.#unanswered.values()) send(call, step);
            this.#call = call;
            ready();
            continue;
          }
          const answer = answers.take(response, traceId);
          if (!answer) continue;
          progress.failures = 0;
          this.#settle(answer);
        }
      });
    } finally {
      this.#call = undefined;
    }
    if (!this.#closing) {
      throw new BxmeshError("the mesh ended the session's stream", 'UNAVAILABLE', {
        reason: 'STREAM_ENDED',
        traceId,
      });
    }
  }

  #reopening() {
    const [first = this.#nextStep] = this.#unanswered.keys();
    const answeredStepId = first > 0 ? first - 1 : undefined;
    return { sessionId: this.#opened.sessionId, answeredStepId };
  }

  #settle({ stepId, error, evaluation }) {
    const waiting = this.#unanswered.get(stepId);
    if (!waiting) return;
    this.#unanswered.delete(stepId);
    if (error) waiting.reject(error);
    else waiting.resolve({ stepId, ...evaluation });
  }
}

function send(call, { stepId, tensor, refreshScales }) {
  const inline = tensor.data.length <= INLINE_BYTES;
  call.write({ step: { stepId, coordinates: inline ? tensor : undefined, refreshScales } });
  if (inline) return;
  for (const chunk of tensorChunks(tensor)) call.write({ chunk });
}
