/** Typed arrays to and from the tensors of the contract, whole or in chunks. */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { BxmeshError, invalid } from './errors.js';

export const CHUNK_BYTES = 128 * 1024;

const MOST_BYTES = 4 * 1024 ** 3;
const MOST_OPEN = 64;
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
  uint8: Uint8Array,
};

/** @typedef {Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array} TypedArray */

/**
 * @typedef {object} Tensor
 * @property {TypedArray} data row-major
 * @property {number[]} shape outermost dimension first
 * @property {string} unit such as 1/angstrom; empty where there is none
 */

/** @typedef {Float32Array | Float64Array | {data: Float32Array | Float64Array, shape: number[]}} Coordinates */

/**
 * Returns the spec of coordinates [N, 3] or [B, N, 3] in angstrom and a copy of their bytes.
 *
 * @param {Coordinates} coordinates a bare array is [N, 3]
 */
export function coordinatesTensor(coordinates) {
  const data = ArrayBuffer.isView(coordinates) ? coordinates : coordinates?.data;
  const shape = coordinates?.shape ?? [data?.length / 3, 3];
  const dataType = Object.keys(ARRAYS).find((name) => data instanceof ARRAYS[name]);
  if (!dataType?.startsWith('float')) {
    throw invalid('coordinates', 'must be a Float64Array or a Float32Array');
  }
  const fits = shape.every((each) => Number.isInteger(each) && each >= 0);
  if (![2, 3].includes(shape.length) || shape.at(-1) !== 3 || !fits || product(shape) !== data.length) {
    throw invalid('coordinates', `must be [N, 3] or [B, N, 3], not ${data.length} numbers as [${shape}]`);
  }
  const spec = { name: 'coordinates', dataType, shape, unit: 'angstrom' };
  return { spec, data: Buffer.copyBytesFrom(data) };
}

/** Yields a tensor in chunks, the header on the first of them. */
export function* tensorChunks({ spec, data }) {
  let header = { spec, totalBytes: data.length, chunkBytes: CHUNK_BYTES };
  for (const { offset, data: piece, crc32: checksum } of pieces(data)) {
    yield { header, name: spec.name, offset, data: piece, crc32: checksum };
    header = undefined;
  }
}

/** Yields bytes in pieces of at most 128 KiB with their offsets and checksums. */
export function* pieces(bytes, start = 0) {
  for (let offset = 0; offset < bytes.length; offset += CHUNK_BYTES) {
    const data = bytes.subarray(offset, offset + CHUNK_BYTES);
    yield { offset: start + offset, data, crc32: crc32(data) };
  }
}

/**
 * Returns a tensor that came in one message.
 *
 * @returns {Tensor}
 */
export function fromMessage({ spec, data }) {
  const size = sizeOf(spec);
  if (data.length !== size) {
    throw damaged('TENSOR_TRUNCATED', `${spec.name} needs ${size} bytes, not ${data.length}`);
  }
  return tensor(spec, Uint8Array.from(data).buffer);
}

/** Puts tensors together from their chunks, which may alternate between tensors. */
export class TensorAssembler {
  #open = new Map();
  #openBytes = 0;

  /**
   * Takes the next chunk; returns the name of its tensor and the tensor if it is the last.
   *
   * @returns {[string, Tensor] | undefined}
   */
  take(chunk) {
    const { name, offset, data } = chunk;
    if (chunk.header) this.#begin(name, chunk.header);
    const unfinished = this.#open.get(name);
    if (!unfinished) throw damaged('TENSOR_HEADER', `a chunk of ${name} came before its header`);
    const { bytes, header } = unfinished;
    if (offset !== unfinished.received || offset + data.length > bytes.length) {
      throw damaged('TENSOR_OFFSET', `${name} goes on at ${unfinished.received}, not at ${offset}`);
    }
    if (crc32(data) !== chunk.crc32) {
      throw damaged('TENSOR_CHECKSUM', `${name} has a wrong checksum in the chunk at ${offset}`);
    }
    bytes.set(data, offset);
    unfinished.received += data.length;
    if (unfinished.received < bytes.length) return undefined;
    this.#open.delete(name);
    this.#openBytes -= bytes.length;
    if (header.digest && header.digest !== digestOf(bytes)) {
      throw damaged('TENSOR_CHECKSUM', `${name} does not have its digest`);
    }
    return [name, tensor(header.spec, bytes.buffer)];
  }

  /** Says that no more chunks come. */
  finish() {
    for (const [name, { received, bytes }] of this.#open) {
      throw damaged('TENSOR_TRUNCATED', `${name} ended after ${received} of ${bytes.length} bytes`);
    }
  }

  #begin(name, header) {
    const size = sizeOf(header.spec);
    if (this.#open.has(name) || header.spec.name !== name || header.totalBytes !== size) {
      throw damaged('TENSOR_HEADER', `${name} has a header that does not fit it`);
    }
    if (this.#open.size >= MOST_OPEN || this.#openBytes + size > MOST_BYTES) {
      throw damaged('TENSOR_TOO_LARGE', `${name} is too large or one of too many`);
    }
    this.#open.set(name, { header, bytes: new Uint8Array(size), received: 0 });
    this.#openBytes += size;
  }
}

/** Returns the error for an answer that arrived wrong. */
export function damaged(reason, message) {
  return new BxmeshError(`the answer arrived damaged: ${message}`, 'DATA_LOSS', { reason });
}

function tensor({ dataType, shape, unit }, buffer) {
  return { data: new ARRAYS[dataType](buffer), shape, unit };
}

function sizeOf(spec) {
  const array = ARRAYS[spec?.dataType];
  if (!array) throw damaged('TENSOR_DATA_TYPE', `${spec?.name} is ${spec?.dataType}`);
  const size = product(spec.shape) * array.BYTES_PER_ELEMENT;
  if (spec.shape.some((length) => length < 0) || size > MOST_BYTES) {
    throw damaged('TENSOR_SHAPE', `${spec.name} has the shape [${spec.shape}]`);
  }
  return size;
}

function product(shape) {
  return shape.reduce((size, length) => size * length, 1);
}

function digestOf(bytes) {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
