/** What goes on until it is done, however often the mesh or the way to it fails. */
import { BxmeshError } from './errors.js';

const STABLE_MILLISECONDS = 5000;
const FINAL = new Set([
  'ALREADY_EXISTS',
  'FAILED_PRECONDITION',
  'INVALID_ARGUMENT',
  'NOT_FOUND',
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
  'UNIMPLEMENTED',
]);

/** Whether a repetition may cure an error. */
export function passes(error) {
  return error instanceof BxmeshError && !FINAL.has(error.code);
}

/**
 * Calls `attempt` until it returns true or the operation's signal aborts. It throws what no
 * repetition cures.
 *
 * @param {import('./calls.js').Connection} connection
 * @param {import('./calls.js').Operation} operation
 * @param {() => Promise<boolean>} attempt
 */
export async function persist(connection, operation, attempt) {
  let failures = 0;
  while (!operation.signal.aborted) {
    const begun = Date.now();
    try {
      if (await attempt()) return;
    } catch (error) {
      if (operation.signal.aborted) return;
      if (!passes(error) || connection.closed) throw error;
    }
    if (Date.now() - begun > STABLE_MILLISECONDS) failures = 0;
    await operation.pause(failures).catch(() => {});
    failures += 1;
  }
}
