/** Tasks: work that the mesh gives to whoever can do it. */
import { randomUUID } from 'node:crypto';
import { REATTACHES } from './calls.js';
import { checked, fromStatus } from './errors.js';
import { date, duration, entries, json, object, payload } from './values.js';

const RESUMED = ['UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'OUT_OF_RANGE'];

/**
 * @typedef {object} TaskOptions
 * @property {string[]} [capabilities] what an agent must offer to get it; the task's type, where
 *   no agent is named
 * @property {string} [agentId] the agent that shall do it
 * @property {string} [description] for people
 * @property {'low' | 'medium' | 'high' | 'critical'} [priority] medium
 * @property {number} [timeout] milliseconds from when it is assigned first
 * @property {{maxAttempts?: number, initialBackoff?: number, maxBackoff?: number,
 *   nonRetryableReasons?: string[]}} [retry] how it is tried again; times in milliseconds
 * @property {string} [parentTaskId] the task on whose behalf it is done
 * @property {string} [stickyKey] the same key goes to the same agent
 * @property {Record<string, string>} [labels]
 * @property {boolean} [waitForAgent] keeps it until an agent comes that offers the capabilities
 */

/**
 * @typedef {object} TaskRecord How a task stands.
 * @property {string} taskId
 * @property {string} type
 * @property {'pending' | 'assigned' | 'running' | 'completed' | 'failed' | 'cancelled' |
 *   'timed_out'} state
 * @property {string} agentId the agent that has it; empty while it waits
 * @property {unknown} parameters from JSON
 * @property {{percent: number, message: string}} progress
 * @property {unknown} result from JSON, when it is completed
 * @property {import('./errors.js').BxmeshError} [error] why it ended without a result, or the last attempt failed
 * @property {number} attempts
 * @property {string} parentTaskId
 * @property {string[]} childTaskIds
 * @property {Record<string, string>} labels
 * @property {Date} [createTime]
 * @property {Date} [startTime]
 * @property {Date} [endTime]
 * @property {number} revision grows with every change
 */

/** A task that an agent works on. */
export class Task {
  #delivery;
  #report;

  /** @package */
  constructor(delivery, signal, report) {
    this.#delivery = delivery;
    this.#report = report;
    /** Aborts when somebody cancelled it, or another agent has it by now. */
    this.signal = signal;
  }

  /** Its name. */
  get id() {
    return this.#delivery.task.taskId;
  }

  /** What kind of task it is. */
  get type() {
    return this.#delivery.task.spec.taskType;
  }

  /** What it is about, for people. */
  get description() {
    return this.#delivery.task.spec.description;
  }

  /** The input, from JSON; undefined where there is none. */
  get parameters() {
    return json(this.#delivery.task.spec.parameters);
  }

  /** The caller's own labels. */
  get labels() {
    return object(this.#delivery.task.spec.labels);
  }

  /** The attempt, from 1. Above 1 it may have been done before. */
  get attempt() {
    return Math.max(this.#delivery.task.attempts, this.#delivery.attempt);
  }

  /** When it is pointless; undefined for never. */
  get deadline() {
    return date(this.#delivery.deadline);
  }

  /** The W3C trace context of whoever assigned it, for the calls that are made because of it. */
  get traceparent() {
    return object(this.#delivery.task.traceContext).traceparent;
  }

  /**
   * Says how far it is.
   *
   * @param {number} percent 0 to 100
   * @param {string} [message] for people
   */
  progress(percent, message = '') {
    const reported = this.#report({ percent, message });
    // Who does not wait for it does not want the process to end either when it fails.
    reported.catch(() => {});
    return reported;
  }
}

/** Gives a task to the mesh; returns it as it then stands. */
export async function assignTask(connection, taskType, parameters, options, operation) {
  const { waitForAgent, capabilities, timeout, retry, labels, ...rest } = options;
  const spec = {
    ...checked('bxmesh.agent.v1.TaskSpec', rest),
    taskType,
    requiredCapabilities: capabilities ?? (options.agentId ? [] : [taskType]),
    parameters: payload(parameters),
    timeout: duration(timeout),
    retryPolicy: retry && policy(retry),
    labels: entries(labels),
  };
  const request = { requestId: randomUUID(), spec, waitForAgent };
  return described((await connection.unary('assignTask', request, operation)).task);
}

/** Yields a task at each change until it ends; takes up again what was lost on the way. */
export async function* watchTask(connection, taskId, afterRevision, operation) {
  let failures = 0;
  for (;;) {
    try {
      const request = { taskId, afterRevision };
      for await (const { task } of connection.responses('watchTask', request, operation)) {
        failures = 0;
        afterRevision = task.revision;
        yield described(task);
      }
      return;
    } catch (error) {
      if (!RESUMED.includes(error.code) || failures >= REATTACHES) throw error;
      if (error.code === 'OUT_OF_RANGE') afterRevision = 0;
    }
    await operation.pause(failures);
    failures += 1;
  }
}

/** @returns {TaskRecord} */
export function described(task) {
  const { spec, progress, error } = task;
  return {
    taskId: task.taskId,
    type: spec.taskType,
    description: spec.description,
    state: task.state,
    agentId: task.agentId,
    parameters: json(spec.parameters),
    progress: { percent: progress?.percent ?? 0, message: progress?.message ?? '' },
    result: json(task.result),
    error: error ? fromStatus(error) : undefined,
    attempts: task.attempts,
    parentTaskId: spec.parentTaskId,
    childTaskIds: task.childTaskIds,
    labels: object(spec.labels),
    createTime: date(task.createTime),
    startTime: date(task.startTime),
    endTime: date(task.endTime),
    revision: task.revision,
  };
}

function policy({ initialBackoff, maxBackoff, ...rest }) {
  return {
    ...checked('bxmesh.registry.v1.RetryPolicy', rest),
    initialBackoff: duration(initialBackoff),
    maxBackoff: duration(maxBackoff),
  };
}
