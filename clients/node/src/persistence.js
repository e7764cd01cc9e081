/** What goes on until it is done, however often the mesh or the way to it fails. */
import { BxmeshError } from './errors.js';

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
 * @param {(succeeds: () => void) => Promise<boolean>} attempt calls its argument when all is well
 */
export async function persist(connection, operation, attempt) {
  let failures = 0;
  const succeeds = () => {
    failures = 0;
  };
  while (!operation.signal.aborted) {
    try {
      if (await attempt(succeeds)) return;
    } catch (error) {
      if (operation.signal.aborted) return;
      if (!passes(error) || connection.closed) throw error;
    }
    await operation.pause(failures).catch(() => {});
    failures += 1;
  }
}
