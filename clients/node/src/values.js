/** Times, maps and payloads, to and from how the contract has them. */
import { Drop, invalid } from './errors.js';

const MOST_JSON_BYTES = 1024 * 1024;

/** Returns a google.protobuf.Duration of so many milliseconds; undefined for undefined. */
export function duration(milliseconds) {
  return milliseconds === undefined ? undefined : parts(milliseconds);
}

/** Returns a google.protobuf.Timestamp of a date; undefined for undefined. */
export function timestamp(date) {
  return date === undefined ? undefined : parts(date.getTime());
}

/** Returns the date of a google.protobuf.Timestamp; undefined where there is none. */
export function date(timestamp) {
  return timestamp ? new Date(timestamp.seconds * 1e3 + timestamp.nanos / 1e6) : undefined;
}

/** Returns a map field of an object: the loader has its entries as a list. */
export function entries(object = {}) {
  return Object.entries(object).map(([key, value]) => ({ key, value }));
}

/** Returns the object of a map field. */
export function object(entries = []) {
  return Object.fromEntries(entries.map(({ key, value }) => [key, value]));
}

/** Returns a value as a JSON payload; an empty one for undefined. */
export function payload(value, schema) {
  if (value === undefined) return undefined;
  let json;
  try {
    json = JSON.stringify(value);
  } catch (error) {
    throw invalid('payload', `is no JSON: ${error.message}`);
  }
  if (json === undefined) throw invalid('payload', `is no JSON: ${typeof value}`);
  const size = Buffer.byteLength(json);
  if (size > MOST_JSON_BYTES) {
    throw invalid('payload', `has ${size} bytes, at most ${MOST_JSON_BYTES}: send a bundle and name it`);
  }
  return { json: { json, schema } };
}

/** Returns the value of a JSON payload, undefined where there is none. */
export function json(payload) {
  if (!payload?.json) return undefined;
  try {
    return JSON.parse(payload.json.json);
  } catch (error) {
    const reason = { code: 'INVALID_ARGUMENT', reason: 'PAYLOAD_INVALID', cause: error };
    throw new Drop(`The payload is no JSON: ${error.message}`, reason);
  }
}

function parts(milliseconds) {
  const seconds = Math.floor(milliseconds / 1e3);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1e3) * 1e6) };
}
