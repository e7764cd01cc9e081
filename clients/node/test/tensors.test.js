import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TensorAssembler, coordinatesTensor, fromMessage, tensorChunks } from '../src/tensors.js';
import { toNpy } from '../src/npy.js';

const values = Float64Array.from({ length: 60_000 }, Math.random);
const tensor = coordinatesTensor({ data: values, shape: [2, 10_000, 3] });

test('a tensor comes back from its chunks, and one among those of another', () => {
  const other = coordinatesTensor(Float32Array.from(values));
  other.spec.name = 'other';
  const [first, second] = [[...tensorChunks(tensor)], [...tensorChunks(other)]];
  assert.equal(first.length, 4);
  const assembler = new TensorAssembler();
  const finished = new Map();
  while (first.length || second.length) {
    for (const chunks of [first, second]) {
      const done = chunks.length && assembler.take(chunks.shift());
      if (done) finished.set(...done);
    }
  }
  assembler.finish();
  assert.deepEqual(finished.get('coordinates').data, values);
  assert.deepEqual(finished.get('coordinates').shape, [2, 10_000, 3]);
  assert.deepEqual(finished.get('other').data, Float32Array.from(values));
});

test('a tensor comes back from one message', () => {
  const message = { spec: tensor.spec, data: Buffer.concat([Buffer.alloc(1), tensor.data]).subarray(1) };
  assert.deepEqual(fromMessage(message).data, values);
  const short = { ...message, data: message.data.subarray(8) };
  assert.throws(() => fromMessage(short), { code: 'DATA_LOSS', reason: 'TENSOR_TRUNCATED' });
});

const spoilt = {
  TENSOR_CHECKSUM: ([first]) => [{ ...first, crc32: first.crc32 ^ 1 }],
  TENSOR_OFFSET: ([first, , third]) => [first, third],
  TENSOR_TRUNCATED: (chunks) => chunks.slice(0, -1),
  TENSOR_HEADER: ([, second]) => [second],
  TENSOR_SHAPE: (chunks) => withHeader(chunks, { spec: { ...tensor.spec, shape: [-1, 3] } }),
  TENSOR_TOO_LARGE: (chunks) =>
    Array.from({ length: 65 }, (_, index) => withName(chunks[0], `tensor ${index}`)),
  TENSOR_DATA_TYPE: (chunks) => withHeader(chunks, { spec: { ...tensor.spec, dataType: 77 } }),
};

for (const [reason, spoil] of Object.entries(spoilt)) {
  test(`a damaged tensor is refused: ${reason}`, () => {
    const assembler = new TensorAssembler();
    const chunks = spoil([...tensorChunks(tensor)]);
    const assemble = () => {
      for (const chunk of chunks) assembler.take(chunk);
      assembler.finish();
    };
    assert.throws(assemble, { code: 'DATA_LOSS', reason });
  });
}

test('a tensor that does not have its digest is refused', () => {
  const digest = `sha256:${'0'.repeat(64)}`;
  const chunks = withHeader([...tensorChunks(tensor)], { digest });
  const assembler = new TensorAssembler();
  const assemble = () => chunks.map((chunk) => assembler.take(chunk));
  assert.throws(assemble, { reason: 'TENSOR_CHECKSUM' });
});

test('coordinates have the right type and shape', () => {
  const wrong = [[1, 2, 3], new Int32Array(3), new Float64Array(4), { data: values, shape: [3] }];
  for (const each of wrong) {
    assert.throws(() => coordinatesTensor(each), { code: 'INVALID_ARGUMENT' });
  }
});

test('an .npy file has an aligned header', () => {
  const file = toNpy(tensor);
  const start = file.length - tensor.data.length;
  assert.equal(start % 64, 0);
  assert.equal(file.readUInt16LE(8), start - 10);
  assert.equal(file[start - 1], 10);
  assert.match(file.toString('latin1', 10, start), /'descr': '<f8'.*'shape': \(2,10000,3\)/);
});

function withHeader([first, ...rest], changes) {
  return [{ ...first, header: { ...first.header, ...changes } }, ...rest];
}

function withName(chunk, name) {
  const spec = { ...chunk.header.spec, name };
  return { ...chunk, name, header: { ...chunk.header, spec } };
}
