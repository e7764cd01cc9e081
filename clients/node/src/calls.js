/** Calls to the mesh: deadlines, cancellation, retries and typed errors. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Metadata } from '@grpc/grpc-js';
import { MeshClient } from './contract.js';
import { BxmeshError, fromServiceError } from './errors.js';

const CHANNEL_OPTIONS = {
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 2000,
  'grpc.keepalive_time_ms': 60_000,
  'grpc.keepalive_timeout_ms': 20_000,
};
/** How often in a row a stream of somebody who waits is opened again before it is given up. */
export const REATTACHES = 9;

const BACKOFF_MILLISECONDS = 200;
const MOST_BACKOFF_MILLISECONDS = 5000;

/**
 * @typedef {object} CallOptions
 * @property {number} [timeout] milliseconds for the whole call, retries included
 * @property {AbortSignal} [signal] cancels the call; what is awaited then throws its reason
 * @property {string} [traceparent] the W3C trace context to go on with; a new trace without one
 */

/** What bounds and names one call over all of its attempts. */
export class Operation {
  /**
   * @param {CallOptions} options
   * @param {number} timeout milliseconds, where the options have none
   * @param {number} [retries] how often it is repeated; as often as the connection says
   */
  constructor(options, timeout, retries) {
    this.retries = retries;
    this.timeout = options.timeout ?? timeout;
    this.deadline = Date.now() + this.timeout;
    this.signal = options.signal;
    this.traceparent = options.traceparent ?? newTraceparent();
    this.traceId = this.traceparent.split('-')[1];
  }

  /** Returns the error to throw in place of one that a call gave. */
  failure(error) {
    if (this.signal?.aborted) return this.signal.reason;
    if (error?.metadata instanceof Metadata) return fromServiceError(error, this.traceId);
    if (error instanceof BxmeshError) error.traceId ||= this.traceId;
    return error;
  }

  /** Waits before the next attempt: full jitter over exponential bounds. */
  async pause(failures) {
    const bound = Math.min(BACKOFF_MILLISECONDS * 2 ** failures, MOST_BACKOFF_MILLISECONDS);
    try {
      await sleep(Math.random() * bound, undefined, { signal: this.signal });
    } catch (error) {
      throw this.failure(error);
    }
  }
}

/** One channel to the mesh. */
export class Connection {
  /** Whether it was closed for good. */
  closed = false;
  #apiKey;
  #client;
  #live = new Set();

  constructor({ address, apiKey, credentials }, retries) {
    this.address = address;
    this.retries = retries;
    this.#apiKey = apiKey;
    this.#client = new MeshClient(address, credentials, CHANNEL_OPTIONS);
  }

  /** The client of all services. */
  get client() {
    if (!this.closed) return this.#client;
    const reason = { reason: 'CONNECTION_CLOSED' };
    throw new BxmeshError('the connection to the mesh is closed', 'CANCELLED', reason);
  }

  /** Returns the metadata of an attempt. */
  metadata(operation) {
    const metadata = new Metadata();
    metadata.set('traceparent', operation.traceparent);
    if (this.#apiKey) metadata.set('authorization', `Bearer ${this.#apiKey}`);
    return metadata;
  }

  /** Returns the answer to a unary call, which must be idempotent. */
  unary(method, request, operation) {
    return this.#retried(operation, async () => {
      const { call, answer } = this.#answered(operation, method, request);
      return await this.held(call, operation, () => answer);
    });
  }

  /** Calls `take` with an empty state and each response to a request; returns what `take` began. */
  collect(method, request, operation, begin) {
    return this.#retried(operation, () => {
      const call = this.client[method](request, this.metadata(operation), {
        deadline: operation.deadline,
      });
      return this.held(call, operation, async () => {
        const collector = begin();
        for await (const response of call) collector.take(response);
        return collector.finish();
      });
    });
  }

  /** Returns the answer to a stream of requests, which `requests` must be able to give again. */
  send(method, requests, operation) {
    return this.#retried(operation, () => {
      const { call, answer } = this.#answered(operation, method);
      return this.held(call, operation, async () => {
        const ended = new AbortController();
        const end = () => ended.abort();
        answer.then(end, end);
        try {
          for await (const request of requests()) {
            if (ended.signal.aborted) break;
            if (!call.write(request)) await once(call, 'drain', { signal: ended.signal });
          }
        } catch (error) {
          if (!ended.signal.aborted) throw error;
        }
        call.end();
        return await answer;
      });
    });
  }

  /** Yields the responses to a request, once; the call ends when nobody takes them any more. */
  async *responses(method, request, operation) {
    const { deadline } = operation;
    const call = this.client[method](request, this.metadata(operation), { deadline });
    const release = this.#hold(call, operation);
    try {
      for await (const response of call) yield response;
    } catch (error) {
      throw operation.failure(error);
    } finally {
      release();
    }
  }

  /** Returns what `body` does with a call, which ends with it or with the operation's signal. */
  async held(call, operation, body) {
    const release = this.#hold(call, operation);
    try {
      return await body();
    } catch (error) {
      throw operation.failure(error);
    } finally {
      release();
    }
  }

  /** Cancels the calls under way and closes the channel. */
  close() {
    this.closed = true;
    for (const call of this.#live) call.cancel();
    this.#client.close();
  }

  #hold(call, { signal }) {
    const cancel = () => call.cancel();
    // A stream reports its cancellation as an error event, also when nobody reads it any more.
    call.on('error', () => {});
    signal?.addEventListener('abort', cancel, { once: true });
    if (signal?.aborted) cancel();
    this.#live.add(call);
    return () => {
      this.#live.delete(call);
      signal?.removeEventListener('abort', cancel);
      cancel();
    };
  }

  #answered(operation, method, ...request) {
    const { client } = this;
    let call;
    const answer = new Promise((resolve, reject) => {
      const settle = (error, response) => (error ? reject(error) : resolve(response));
      const options = { deadline: operation.deadline };
      call = client[method](...request, this.metadata(operation), options, settle);
    });
    return { call, answer };
  }

  async #retried(operation, attempt) {
    for (let failures = 0; ; failures += 1) {
      try {
        return await attempt();
      } catch (error) {
        const most = operation.retries ?? this.retries;
        if (error?.code !== 'UNAVAILABLE' || failures >= most) throw error;
      }
      await operation.pause(failures);
    }
  }
}

/**
 * Settles as the promise does, unless the operation's time or signal comes first.
 *
 * @template T
 * @param {Promise<T>} promise
 * @param {Operation} operation
 * @param {string} late what did not happen in time
 * @returns {Promise<T>}
 */
export function bounded(promise, operation, late) {
  const { timeout, signal, traceId } = operation;
  return new Promise((resolve, reject) => {
    const finish = (settle, value) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
      settle(value);
    };
    const abort = () => finish(reject, signal.reason);
    const timer = setTimeout(() => {
      const message = `${late} within ${timeout} ms`;
      finish(reject, new BxmeshError(message, 'DEADLINE_EXCEEDED', { traceId }));
    }, timeout);
    signal?.addEventListener('abort', abort, { once: true });
    promise.then(
      (value) => finish(resolve, value),
      (error) => finish(reject, error),
    );
    if (signal?.aborted) abort();
  });
}

function newTraceparent() {
  return `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`;
}
