/** Messages between agents. */
import { randomUUID } from 'node:crypto';
import { contract } from './contract.js';
import { BxmeshError, checked, fromStatus, invalid, toStatus } from './errors.js';
import { date, duration, entries, json, object, payload, timestamp } from './values.js';

const ENVELOPE = 'bxmesh.agent.v1.Envelope';
const STATUS = 'google.rpc.Status';
const STATUS_URL = `type.googleapis.com/${STATUS}`;
const ERROR_REPORT = 'ERROR_REPORT';
const MOST_SCHEMA = 256;
const MOST_HEADERS = 64;
const MESSAGE_TYPE = /^[A-Za-z][A-Za-z0-9_.-]{0,127}$/;

/**
 * @typedef {object} MessageOptions
 * @property {'durable' | 'direct'} [mode] durable: at least once, kept until it is
 *   handled; direct: at once or not at all
 * @property {boolean} [hold] keeps it for a recipient that is not registered
 * @property {string} [sender] an agent of the caller; the caller's own name
 * @property {string} [messageId]
 * @property {'low' | 'medium' | 'high' | 'critical'} [priority] medium
 * @property {string} [correlationId] the message that this one answers
 * @property {string} [conversationId]
 * @property {string} [replyTo] the agent that an answer shall go to; the sender
 * @property {Date} [expireTime] when it is pointless
 * @property {Record<string, string>} [headers]
 * @property {string} [schema] the name of the schema that the JSON keeps to
 */

/** @typedef {{messageId: string, receivers: number, held: boolean}} Sent */

/** A message as it arrives. */
export class Message {
  #envelope;

  /** @package */
  constructor(envelope) {
    this.#envelope = envelope;
  }

  /** Its name. */
  get id() {
    return this.#envelope.messageId;
  }

  /** What it is, such as greeting.request. */
  get type() {
    return this.#envelope.messageType;
  }

  /** The agent that sent it. */
  get sender() {
    return this.#envelope.sender;
  }

  /** The agent it is for. */
  get recipient() {
    return this.#envelope.recipient;
  }

  /** What it carries, from JSON; undefined where it carries none. */
  get json() {
    return json(this.#envelope.payload);
  }

  /** The error that an ERROR_REPORT tells of; undefined in any other message. */
  get error() {
    const any = this.#envelope.payload?.protobuf;
    if (this.type !== ERROR_REPORT || any?.type_url !== STATUS_URL) return undefined;
    return fromStatus(contract[STATUS].deserialize(any.value));
  }

  /** What it carries, as the contract has it: {json} or {protobuf}. */
  get payload() {
    return this.#envelope.payload;
  }

  /** low, medium, high or critical. */
  get priority() {
    return this.#envelope.priority;
  }

  /** The id of the message that this one answers; empty for none. */
  get correlationId() {
    return this.#envelope.correlationId;
  }

  /** The conversation it belongs to; empty for none. */
  get conversationId() {
    return this.#envelope.conversationId;
  }

  /** The agent that an answer goes to. */
  get replyTo() {
    return this.#envelope.replyTo || this.#envelope.sender;
  }

  /** Facts beside the payload. */
  get headers() {
    return object(this.#envelope.headers);
  }

  /** When the mesh accepted it. */
  get createTime() {
    return date(this.#envelope.createTime);
  }

  /** When it is pointless; undefined for never. */
  get expireTime() {
    return date(this.#envelope.expireTime);
  }

  /** The sender's W3C trace context, for the calls that are made because of it. */
  get traceparent() {
    return object(this.#envelope.traceContext).traceparent;
  }
}

/** A message that an agent handles. */
export class DeliveredMessage extends Message {
  #delivery;
  #sendDirect;

  /** @package */
  constructor(envelope, delivery, signal, sendDirect) {
    super(envelope);
    this.#delivery = delivery;
    this.#sendDirect = sendDirect;
    /** Aborts when nobody wants it handled any more, here at least. */
    this.signal = signal;
    /** @package */
    this.answer = undefined;
  }

  /** Whether it came at most once, and is not tried again. */
  get direct() {
    return this.#delivery.deliveryId === '';
  }

  /** The attempt, from 1. Above 1 it may have been handled before. */
  get attempt() {
    return this.#delivery.attempt;
  }

  /** How often it is tried at most; 0 for any number. */
  get maxAttempts() {
    return this.#delivery.maxAttempts;
  }

  /**
   * Answers it, once. The answer to a durable message is sent in the same step in which the message
   * is settled, so it goes when the handler is done, and not at all when the handler throws.
   *
   * @param {string} type
   * @param {unknown} [value] anything that JSON has
   * @param {{priority?: string, headers?: Record<string, string>, schema?: string}} [options]
   */
  reply(type, value, options = {}) {
    const replied = this.#reply(type, value, options);
    // Who does not wait for it does not want the process to end either when it fails.
    replied.catch(() => {});
    return replied;
  }

  async #reply(type, value, options) {
    if (this.answer) {
      const reason = { reason: 'REPLIED_ALREADY' };
      throw new BxmeshError(`${this.id} has its reply already`, 'FAILED_PRECONDITION', reason);
    }
    const { priority, headers, schema } = options;
    this.answer = envelopeOf(type, value, { priority, headers, schema });
    if (this.direct) await this.#sendDirect(this.answer);
  }
}

/** Returns the message that tells a sender why its message was given up; undefined for nobody. */
export function errorReport(message, error) {
  if (message.type === ERROR_REPORT || !message.replyTo) return undefined;
  const value = contract[STATUS].serialize(toStatus(error));
  return { messageType: ERROR_REPORT, payload: { protobuf: { type_url: STATUS_URL, value } } };
}

/** Returns the envelope of a delivery; undefined where it has none. */
export function envelopeIn({ envelope, signedEnvelope }) {
  return envelope ?? (signedEnvelope && contract[ENVELOPE].deserialize(signedEnvelope.envelope));
}

/**
 * Sends a message to one agent.
 *
 * @param {import('./calls.js').Connection} connection
 * @param {object} envelope
 * @param {{deliveryMode?: string, holdForRecipient?: boolean, replyTimeout?: number}} way
 * @param {import('./calls.js').Operation} operation
 */
export async function sendMessage(connection, envelope, way, operation) {
  const request = {
    ...checked('bxmesh.agent.v1.SendMessageRequest', way),
    replyTimeout: duration(way.replyTimeout),
    requestId: randomUUID(),
    envelope: traced(envelope, operation),
  };
  return await connection.unary('sendMessage', request, operation);
}

/** Sends a message to every live agent that fits. */
export async function broadcastMessage(connection, envelope, whom, operation) {
  const request = {
    ...checked('bxmesh.agent.v1.BroadcastMessageRequest', whom),
    requestId: randomUUID(),
    envelope: traced(envelope, operation),
  };
  return await connection.unary('broadcastMessage', request, operation);
}

/** Returns the envelope of a message; refuses what the contract does not have. */
export function envelopeOf(messageType, value, { schema, headers, expireTime, ...fields }) {
  if (!MESSAGE_TYPE.test(messageType)) {
    throw invalid('messageType', 'must be a letter, then letters, digits, "_", "." or "-"');
  }
  if (schema?.length > MOST_SCHEMA) throw invalid('schema', `is longer than ${MOST_SCHEMA}`);
  const facts = Object.entries(headers ?? {});
  const fits = ([name, value]) =>
    name.length >= 1 && name.length <= 63 && typeof value === 'string' && value.length <= 1024;
  if (facts.length > MOST_HEADERS || !facts.every(fits)) {
    throw invalid('headers', 'are at most 64 strings of 1024 characters, with names of 1 to 63');
  }
  return {
    ...checked(ENVELOPE, fields),
    messageType,
    payload: payload(value, schema),
    headers: entries(headers),
    expireTime: timestamp(expireTime),
  };
}

function traced(envelope, { traceparent }) {
  return { ...envelope, traceContext: entries({ traceparent }) };
}
