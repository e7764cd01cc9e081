/** What a call to the mesh can throw. */
import { status as codes } from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';
import { contract, MESSAGE_OPTIONS, violations as violationsOf } from './contract.js';

// A status travels in trailers, of which gRPC takes 8 KiB.
const MOST_MESSAGE = 800;
const MOST_TEXT = 200;
const MOST_DETAILS = 10;
const Status = contract['google.rpc.Status'];
const details = fromJSON(
  {
    nested: {
      ErrorInfo: {
        fields: {
          reason: { type: 'string', id: 1 },
          domain: { type: 'string', id: 2 },
          metadata: { keyType: 'string', type: 'string', id: 3 },
        },
      },
      BadRequest: {
        fields: { fieldViolations: { rule: 'repeated', type: 'FieldViolation', id: 1 } },
      },
      FieldViolation: {
        fields: { field: { type: 'string', id: 1 }, description: { type: 'string', id: 2 } },
      },
      RetryInfo: { fields: { retryDelay: { type: 'Duration', id: 1 } } },
      Duration: { fields: { seconds: { type: 'int64', id: 1 }, nanos: { type: 'int32', id: 2 } } },
    },
  },
  MESSAGE_OPTIONS,
);

/** An error that the mesh answered, or that kept a call from reaching it. */
export class BxmeshError extends Error {
  name = 'BxmeshError';

  /**
   * @param {string} message what was wrong and what to do about it
   * @param {string} code the gRPC status code, such as INVALID_ARGUMENT
   * @param {object} [more]
   * @param {string} [more.reason]
   * @param {Record<string, string>} [more.metadata]
   * @param {{field: string, description: string}[]} [more.fieldViolations]
   * @param {number} [more.retryAfter]
   * @param {string} [more.traceId]
   * @param {unknown} [more.cause]
   */
  constructor(message, code, more = {}) {
    super(message, { cause: more.cause });
    /** The gRPC status code, such as INVALID_ARGUMENT. */
    this.code = code;
    /** The kind of error, in UPPER_SNAKE; the code where the server gave none. */
    this.reason = more.reason || code;
    /** What the error is about, by name. */
    this.metadata = more.metadata ?? {};
    /** What is wrong with which field of the request. */
    this.fieldViolations = more.fieldViolations ?? [];
    /** Milliseconds after which a retry may succeed; undefined where the server gave none. */
    this.retryAfter = more.retryAfter;
    /** The trace of the failed call, 32 hexadecimal digits; empty when nothing was sent. */
    this.traceId = more.traceId ?? '';
  }
}

/**
 * Says in a handler that what it was given cannot be done, now or later: a message is then a dead
 * letter at once. Any other error means that it is tried again.
 */
export class Drop extends BxmeshError {
  name = 'Drop';

  /**
   * @param {string} message what was wrong and what to do about it
   * @param {{code?: string, reason?: string, metadata?: Record<string, string>, cause?: unknown}}
   *   [more] the code is FAILED_PRECONDITION, the reason DROPPED
   */
  constructor(message, { code = 'FAILED_PRECONDITION', reason = 'DROPPED', ...more } = {}) {
    super(message, code, { reason, ...more });
  }
}

/**
 * Returns the error of a failed call, from its rich status where it has one.
 *
 * @param {import('@grpc/grpc-js').ServiceError} error
 * @param {string} traceId
 */
export function fromServiceError(error, traceId) {
  const [rich] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const plain = { code: error.code, message: error.details, details: [] };
  return fromStatus((rich && decoded(Status, rich)) || plain, traceId, error);
}

/** Returns the error that a google.rpc.Status describes, such as that of one step. */
export function fromStatus(status, traceId, cause) {
  const found = Object.assign({}, ...status.details.map(unpacked));
  const { trace_id: serverTraceId, ...metadata } = found.metadata ?? {};
  const code = codes[status.code] ?? 'UNKNOWN';
  return new BxmeshError(status.message || code, code, {
    reason: found.reason,
    metadata,
    fieldViolations: found.fieldViolations,
    retryAfter: found.retryDelay && milliseconds(found.retryDelay),
    traceId: serverTraceId || traceId,
    cause,
  });
}

/**
 * Returns the google.rpc.Status that says what a handler threw, without its stack. What is none of
 * the mesh's errors is INTERNAL, its class the reason.
 */
export function toStatus(error) {
  if (!(error instanceof BxmeshError)) error = foreign(error);
  const metadata = Object.entries(error.metadata).map((entry) => entry.map(short));
  const info = { reason: short(error.reason), domain: 'bxmesh' };
  info.metadata = Object.fromEntries(metadata.slice(0, MOST_DETAILS));
  const found = [packed('ErrorInfo', info)];
  const violations = error.fieldViolations.slice(0, MOST_DETAILS).map(({ field, description }) => ({
    field: short(field),
    description: short(description),
  }));
  if (violations.length) found.push(packed('BadRequest', { fieldViolations: violations }));
  const message = error.message.slice(0, MOST_MESSAGE).toWellFormed();
  return { code: codes[error.code] ?? codes.UNKNOWN, message, details: found };
}

/** Returns the error for an argument that is wrong before anything is sent. */
export function invalid(field, description) {
  return invalidFields([{ field, description }]);
}

/**
 * Returns a message whose names and choices are those of the contract; throws for any other.
 *
 * @param {string} type the message's full name
 * @param {Record<string, unknown>} message
 */
export function checked(type, message) {
  const wrong = violationsOf(type, message);
  if (wrong.length) throw invalidFields(wrong);
  return message;
}

function invalidFields(fieldViolations) {
  const message = fieldViolations.map((each) => `${each.field} ${each.description}`).join('; ');
  return new BxmeshError(message, 'INVALID_ARGUMENT', { fieldViolations });
}

function foreign(error) {
  const name = error instanceof Error ? error.name : 'Error';
  const message = (error instanceof Error && error.message) || String(error);
  const reason = name.replace(/(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])/g, '_');
  return new BxmeshError(message, 'INTERNAL', { reason: reason.toUpperCase() });
}

function short(text) {
  return String(text).slice(0, MOST_TEXT).toWellFormed();
}

function packed(type, detail) {
  const value = details[type].serialize(detail);
  return { type_url: `type.googleapis.com/google.rpc.${type}`, value };
}

function unpacked(any) {
  const type = details[any.type_url.replace(/^.*\/google\.rpc\./, '')];
  return type ? decoded(type, any.value) : {};
}

function decoded(type, bytes) {
  try {
    return type.deserialize(bytes);
  } catch {
    // A proxy may have cut the trailer; the plain status says enough then.
    return undefined;
  }
}

function milliseconds({ seconds, nanos }) {
  return seconds * 1e3 + nanos / 1e6;
}
