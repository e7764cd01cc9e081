/** NumPy's file format, for coordinates that do not fit in one message. */

const MAGIC = Buffer.from('\x93NUMPY\x01\x00', 'latin1');
const TYPES = { float32: '<f4', float64: '<f8' };

/** Returns a tensor as the content of an .npy file. */
export function toNpy({ spec, data }) {
  const fields = `{'descr': '${TYPES[spec.dataType]}', 'fortran_order': False, 'shape': (${spec.shape}), }`;
  const length = Math.ceil((MAGIC.length + 2 + fields.length + 1) / 64) * 64 - MAGIC.length - 2;
  const size = Buffer.alloc(2);
  size.writeUInt16LE(length);
  return Buffer.concat([MAGIC, size, Buffer.from(`${fields.padEnd(length - 1)}\n`), data]);
}
