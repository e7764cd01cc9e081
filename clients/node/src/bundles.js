/** Uploads of bundles. */
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { invalid } from './errors.js';
import { pieces } from './tensors.js';

const BUNDLE_ID = /^sha256:[0-9a-f]{64}$/;
const READ_BYTES = 1024 * 1024;

/** @typedef {string | Uint8Array} Source a file's path, its bytes, or the name of a bundle */

/** Returns the source where it is the name of a bundle. */
export function bundleId(source) {
  return typeof source === 'string' && BUNDLE_ID.test(source) ? source : undefined;
}

/**
 * Stores a file or bytes.
 *
 * @param {import('./calls.js').Connection} connection
 * @param {string | Uint8Array} source
 * @param {{kind: string, displayName?: string}} description
 * @param {import('./calls.js').Operation} operation
 */
export async function upload(connection, source, description, operation) {
  const content = typeof source === 'string' ? await file(source) : memory(source);
  const header = {
    kind: description.kind,
    displayName: description.displayName ?? content.name,
    bundleId: await digest(content),
    sizeBytes: content.size,
  };
  const requestId = randomUUID();
  async function* requests() {
    yield { requestId, header };
    let offset = 0;
    for await (const block of content.blocks()) {
      for (const chunk of pieces(block, offset)) yield { chunk };
      offset += block.length;
    }
  }
  const { bundle } = await connection.send('uploadBundle', requests, operation);
  return bundle;
}

async function digest(content) {
  const hash = createHash('sha256');
  for await (const block of content.blocks()) hash.update(block);
  return `sha256:${hash.digest('hex')}`;
}

async function file(path) {
  try {
    const { size } = await stat(path);
    const blocks = () => createReadStream(path, { highWaterMark: READ_BYTES });
    return { name: basename(path), size, blocks };
  } catch (error) {
    throw invalid('source', `${path} cannot be read: ${error.code}`);
  }
}

function memory(bytes) {
  if (!(bytes instanceof Uint8Array)) throw invalid('source', 'must be a path or a Uint8Array');
  return { name: '', size: bytes.length, blocks: () => [bytes] };
}
