/** Where the mesh is and what opens it. */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { credentials } from '@grpc/grpc-js';

const DEFAULT_ADDRESS = '127.0.0.1:50051';
const LOCAL = /^(unix(-abstract)?:.+|(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+)$/;

/**
 * @typedef {object} EndpointOptions
 * @property {string} [address] HOST:PORT or unix:PATH; `BXMESH_ADDRESS`, then the local server's,
 *   then 127.0.0.1:50051
 * @property {string} [apiKey] `BXMESH_API_KEY`, then for an address on this machine the admin key
 *   in the state directory
 * @property {boolean} [tls] whether to speak TLS; what the local server says, otherwise whether
 *   there are root certificates
 * @property {string | Uint8Array} [rootCertificates] a PEM file's path or its content; the system's
 * @property {string} [stateDirectory] `BXMESH_STATE_DIR`, then ~/.local/state/bxmesh
 */

/**
 * Returns the address, the key and the channel credentials that the options, the environment and
 * the state directory name.
 *
 * @param {EndpointOptions} options
 */
export function resolve(options) {
  const directory = stateDirectory(options.stateDirectory);
  const given = options.address || process.env.BXMESH_ADDRESS;
  const server = given ? undefined : runningServer(directory);
  const address = given || server?.address || DEFAULT_ADDRESS;
  const roots = options.rootCertificates;
  const tls = options.tls ?? (server?.tls === true || roots !== undefined);
  let apiKey = options.apiKey || process.env.BXMESH_API_KEY || '';
  if (!apiKey && LOCAL.test(address)) apiKey = read(join(directory, 'admin.key'))?.trim() ?? '';
  return { address, apiKey, credentials: channelCredentials(tls, roots) };
}

function stateDirectory(path) {
  const base = process.env.XDG_STATE_HOME || join(homedir(), '.local', 'state');
  return path || process.env.BXMESH_STATE_DIR || join(base, 'bxmesh');
}

function runningServer(directory) {
  try {
    const server = JSON.parse(read(join(directory, 'server.json')) ?? '{}');
    return isAlive(server.pid) ? server : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function isAlive(pid) {
  if (!Number.isInteger(pid) || pid <= 0) return false;
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return error.code === 'EPERM';
  }
}

function read(path) {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes(error.code)) return undefined;
    throw error;
  }
}

function channelCredentials(tls, roots) {
  if (!tls) return credentials.createInsecure();
  const pem = typeof roots === 'string' ? readFileSync(roots) : roots && Buffer.from(roots);
  return credentials.createSsl(pem ?? null);
}
