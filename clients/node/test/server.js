/** A real mesh for the tests, in processes of its own. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** The interpreter in which the mesh is installed. */
export const PYTHON =
  process.env.BXMESH_PYTHON ?? fileURLToPath(new URL('../../../.venv/bin/python', import.meta.url));
const START_MILLISECONDS = 90_000;
const FIND = 'import importlib.util; print(importlib.util.find_spec("iotbx").origin)';

const run = promisify(execFile);

/**
 * Starts a mesh in a temporary directory whose path is short enough for unix sockets.
 *
 * @param {object} [options]
 * @param {string} [options.listen]
 * @param {string[]} [options.args]
 * @param {Record<string, string>} [options.settings] environment variables
 */
export async function startMesh({ listen = 'unix:', args = [], settings = {} } = {}) {
  const stateDirectory = await mkdtemp(join(tmpdir(), 'bx-'));
  const command = ['-m', 'bxmesh.server.cli', 'serve', '--workers', '1', '--state-dir', stateDirectory];
  let running;
  const start = async (address) => {
    running = await serve(stateDirectory, [...command, '--listen', address, ...args], settings);
    return running.address;
  };
  const end = async (signal) => {
    running.server.kill(signal);
    await running.exited;
  };
  try {
    const address = await start(listen);
    return {
      address,
      stateDirectory,
      /** Ends it without a warning. */
      kill: () => end('SIGKILL'),
      /** Starts it again where it was. */
      restart: () => start(address),
      stop: async () => {
        await end('SIGTERM');
        await rm(stateDirectory, { recursive: true });
      },
    };
  } catch (error) {
    await rm(stateDirectory, { recursive: true });
    throw error;
  }
}

async function serve(stateDirectory, command, settings) {
  const logPath = join(stateDirectory, 'server.log');
  const log = await open(logPath, 'a');
  const env = { ...process.env, ...settings };
  const server = spawn(PYTHON, command, { stdio: ['ignore', log.fd, log.fd], env });
  await log.close();
  const exited = once(server, 'exit');
  const deadline = Date.now() + START_MILLISECONDS;
  while (Date.now() < deadline && server.exitCode === null) {
    const file = await readFile(join(stateDirectory, 'server.json'), 'utf8').catch(() => '{}');
    const { pid, address } = JSON.parse(file);
    if (pid === server.pid) return { server, exited, address };
    await sleep(50);
  }
  server.kill('SIGTERM');
  await exited;
  const end = (await readFile(logPath, 'utf8')).slice(-2000);
  throw new Error(`The mesh did not start. The end of its log:\n${end}`);
}

/** Returns the path of a file in the cctbx wheel. */
export async function cctbxFile(path) {
  const { stdout } = await run(PYTHON, ['-c', FIND]);
  return join(stdout.trim(), '..', '..', path);
}

/** Returns what the client in Python gets for a model with reflections. */
export async function reference({ address, stateDirectory }, macromolecule, reflections) {
  const script = fileURLToPath(new URL('reference.py', import.meta.url));
  const args = [script, address, stateDirectory, macromolecule, reflections];
  return JSON.parse((await run(PYTHON, args, { maxBuffer: 2 ** 27, timeout: 60_000 })).stdout);
}
