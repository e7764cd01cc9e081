import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { BxmeshError, Mesh } from '../src/index.js';
import { startProxy } from './proxy.js';
import { cctbxFile, reference, startMesh } from './server.js';

suite('a mesh', () => {
  let server;
  let mesh;
  let macromolecule;
  let reflections;
  let expected;
  let model;

  before(async () => {
    server = await startMesh();
    mesh = new Mesh(server);
    macromolecule = await cctbxFile('mmtbx/regression/pdbs/7n2l.pdb');
    reflections = await cctbxFile('mmtbx/regression/mtz/7n2l.mtz');
    expected = await reference(server, macromolecule, reflections);
    model = await mesh.createModel(macromolecule, { reflections });
  });

  after(async () => {
    mesh?.close();
    await server?.stop();
  });

  test('uploads the same content once, from a file or from memory', async () => {
    const file = await mesh.upload(reflections, { kind: 'reflections' });
    const bytes = await readFile(reflections);
    const memory = await mesh.upload(bytes, { kind: 'reflections', displayName: 'other.mtz' });
    assert.match(file.bundleId, /^sha256:[0-9a-f]{64}$/);
    assert.equal(memory.bundleId, file.bundleId);
    assert.equal(file.sizeBytes, bytes.length);
    assert.equal(file.displayName, '7n2l.mtz');
  });

  test('makes the model that the client in Python makes', () => {
    assert.equal(model.modelId, expected.modelId);
    assert.equal(model.summary.atoms, 150);
    assert.equal(model.summary.spaceGroup, 'P 1');
    assert.equal(model.summary.reflections.rFreeFlagsLabel, 'R-free-flags');
  });

  test('computes the gradients that the client in Python gets', async () => {
    const steps = [];
    const gradients = await mesh.gradients(model, { onProgress: ({ step }) => steps.push(step) });
    assertSame(gradients, expected.own);
    assert.ok(gradients.tensors.combined_sites.data instanceof Float64Array);
    assert.equal(gradients.tensors.geometry_sites.unit, '1/angstrom');
    assert.match(gradients.traceId, /^[0-9a-f]{32}$/);
    assert.ok(steps.includes('queued'));
    assert.ok(gradients.stepTimes.gradients > 0);
    assert.equal(gradients.workerIds.length, 1);
  });

  test('computes single precision', async () => {
    const options = { target: 'geometry', precision: 'float32' };
    const { data } = (await mesh.gradients(model.modelId, options)).tensors.geometry_sites;
    const exact = expected.own.tensors.geometry_sites.data;
    assert.ok(data instanceof Float32Array);
    assert.deepEqual([...data], exact.map(Math.fround));
  });

  test('computes a batch that needs many chunks, each sample for itself', async () => {
    const batch = 600;
    const coordinates = copies(expected.sites, batch);
    coordinates.data[expected.sites.length] = NaN;
    const { tensors, samples } = await mesh.gradients(model, { target: 'geometry', coordinates });
    assert.deepEqual(tensors.geometry_sites.shape, [batch, 150, 3]);
    assert.equal(samples.length, batch);
    assert.equal(samples[0].geometry.energy, expected.own.energy);
    assert.deepEqual([samples[0].status, samples[1].status], ['ok', 'non_finite']);
    const rows = (sample) => tensors.geometry_sites.data.subarray(sample * 450, sample * 450 + 450);
    const exact = Float64Array.from(expected.own.tensors.geometry_sites.data);
    assert.deepEqual(rows(0), exact);
    assert.deepEqual(rows(1), new Float64Array(450));
    assert.deepEqual(rows(batch - 1), exact);
  });

  test('serves a session', async () => {
    const session = await mesh.session(model);
    try {
      assert.equal(session.atoms, 150);
      assert.ok(session.xray.rWork > 0);
      for (const [index, coordinates] of expected.coordinates.entries()) {
        const refreshScales = index === 1;
        const step = await session.step(Float64Array.from(coordinates), { refreshScales });
        assert.equal(step.stepId, index);
        assertSame(step, expected.steps[index]);
      }
      await assert.rejects(session.step(new Float64Array(6)), (error) => {
        assert.ok(error instanceof BxmeshError);
        assert.equal(error.code, 'INVALID_ARGUMENT');
        assert.equal(error.traceId.length, 32);
        return true;
      });
      const [coordinates] = expected.coordinates;
      const { samples } = await session.step(Float64Array.from(coordinates));
      assert.equal(samples[0].status, 'ok');
    } finally {
      await session.close();
    }
    await assert.rejects(session.step(new Float64Array(450)), { reason: 'SESSION_CLOSED' });
  });

  test('takes a session up again after a lost connection, with the steps it lost', async () => {
    const path = join(server.stateDirectory, 'proxy.sock');
    const proxy = await startProxy(path, server.address.replace('unix:', ''));
    const remote = new Mesh({ ...server, address: `unix:${path}` });
    try {
      const session = await remote.session(model);
      const steps = expected.coordinates.map((each) => Float64Array.from(each));
      assertSame(await session.step(steps[0]), expected.steps[0]);
      const { sessionId } = session;
      const before = proxy.forwarded();
      proxy.hold();
      const lost = [session.step(steps[1], { refreshScales: true }), session.step(steps[2])];
      while (proxy.forwarded() < before + 2 * steps[1].byteLength) await sleep(1);
      proxy.cut();
      const answers = await Promise.all(lost);
      assertSame(answers[0], expected.steps[1]);
      assertSame(answers[1], expected.steps[2]);
      assert.equal(session.sessionId, sessionId);
      await session.close();
    } finally {
      remote.close();
      await proxy.close();
    }
  });

  test('serves steps that need many chunks, and no more at once than it can keep', async () => {
    const session = await mesh.session(model, { target: 'geometry' });
    try {
      const { data, shape } = copies(expected.sites, 600);
      const { tensors, samples } = await session.step({ data, shape });
      assert.deepEqual(tensors.geometry_sites.shape, shape);
      assert.equal(samples.length, 600);
      const exact = Float64Array.from(expected.own.tensors.geometry_sites.data);
      assert.deepEqual(tensors.geometry_sites.data.subarray(-450), exact);
      const abort = new AbortController();
      const given = session.step({ data, shape }, { signal: abort.signal });
      abort.abort(new Error('enough'));
      await assert.rejects(given, { message: 'enough' });
      const sites = data.subarray(0, 450);
      const steps = Array.from({ length: 40 }, () => session.step(sites));
      const outcomes = await Promise.allSettled(steps);
      const refused = outcomes.filter(({ reason }) => reason?.reason === 'WINDOW_FULL');
      const answered = outcomes.filter(({ status }) => status === 'fulfilled');
      assert.deepEqual([answered.length, refused.length], [31, 9]);
    } finally {
      await session.close();
    }
  });

  test('says what is wrong with whose input', async () => {
    const bad = Buffer.from('this is no model\n');
    await assert.rejects(mesh.createModel(bad), (error) => {
      assert.ok(error instanceof BxmeshError);
      assert.equal(error.code, 'INVALID_ARGUMENT');
      assert.match(error.reason, /^[A-Z][A-Z_]+$/);
      assert.notEqual(error.reason, error.code);
      assert.match(error.traceId, /^[0-9a-f]{32}$/);
      return true;
    });
    await assert.rejects(mesh.gradients('sha256:nonsense'), (error) => {
      assert.equal(error.code, 'INVALID_ARGUMENT');
      assert.equal(error.fieldViolations[0].field, 'model_id');
      return true;
    });
    await assert.rejects(mesh.gradients(`sha256:${'0'.repeat(64)}`), { code: 'NOT_FOUND' });
  });

  test('refuses what the contract does not have before it is sent', async () => {
    const wrong = { fieldViolations: [{ field: 'target', description: 'can be geometry, xray, combined' }] };
    await assert.rejects(mesh.gradients(model, { target: 'energy' }), wrong);
    await assert.rejects(mesh.gradients(model, { tarjet: 'xray' }), { code: 'INVALID_ARGUMENT' });
    const odd = { coordinates: new Float64Array(4) };
    await assert.rejects(mesh.gradients(model, odd), { code: 'INVALID_ARGUMENT' });
    await assert.rejects(mesh.upload('/no/such/file', { kind: 'map' }), /ENOENT/);
  });

  test('does not open to a wrong key', async () => {
    const stranger = new Mesh({ ...server, apiKey: 'bxm_wrong' });
    try {
      await assert.rejects(stranger.gradients(model), { code: 'UNAUTHENTICATED' });
      await assert.rejects(stranger.session(model), { code: 'UNAUTHENTICATED' });
      const bytes = Buffer.alloc(2 ** 22, 'x');
      await assert.rejects(stranger.upload(bytes, { kind: 'map' }), { code: 'UNAUTHENTICATED' });
    } finally {
      stranger.close();
    }
  });

  test('is unavailable where nobody listens', async () => {
    const nowhere = new Mesh({ ...server, address: `${server.address}-not`, retries: 1 });
    try {
      await assert.rejects(nowhere.gradients(model), { code: 'UNAVAILABLE' });
    } finally {
      nowhere.close();
    }
  });

  test('ends what is under way when it is closed', async () => {
    const brief = new Mesh(server);
    const session = await brief.session(model);
    const coordinates = copies(expected.sites, 600);
    const step = assert.rejects(session.step(coordinates), { code: 'CANCELLED' });
    brief.close();
    await step;
    await assert.rejects(session.step(coordinates), { code: 'CANCELLED' });
    await session.close();
  });

  test('runs the example of the README', async () => {
    const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
    const path = fileURLToPath(new URL('../example.js', import.meta.url));
    assert.ok(readme.includes(await readFile(path, 'utf8')));
    const env = { ...process.env, BXMESH_STATE_DIR: server.stateDirectory };
    const args = [path, macromolecule, reflections];
    const { stdout } = await promisify(execFile)(process.execPath, args, { env });
    assert.match(stdout, new RegExp(String(expected.own.energy)));
  });

  test('keeps a deadline', async () => {
    const late = mesh.gradients(model, { timeout: 1 });
    await assert.rejects(late, { code: 'DEADLINE_EXCEEDED' });
    await assert.rejects(mesh.session(model, { timeout: 1 }), { code: 'DEADLINE_EXCEEDED' });
  });

  test('stops a cancelled stream', async () => {
    const abort = new AbortController();
    const reason = new Error('enough');
    const cancelled = mesh.gradients(model, {
      target: 'xray',
      coordinates: copies(expected.sites, 2000),
      signal: abort.signal,
      onProgress: ({ samplesDone }) => samplesDone > 0 && abort.abort(reason),
    });
    await assert.rejects(cancelled, reason);
    await assert.rejects(mesh.gradients(model, { signal: AbortSignal.abort() }), {
      name: 'AbortError',
    });
    // The one worker answers, so it is not at the 2000 samples any more.
    assertSame(await mesh.gradients(model), expected.own);
  });
});

function copies(sites, batch) {
  const data = new Float64Array(batch * sites.length);
  for (let offset = 0; offset < data.length; offset += sites.length) data.set(sites, offset);
  return { data, shape: [batch, sites.length / 3, 3] };
}

function assertSame(actual, wanted) {
  assert.deepEqual(Object.keys(actual.tensors).sort(), Object.keys(wanted.tensors).sort());
  for (const [name, { data, shape }] of Object.entries(wanted.tensors)) {
    assert.deepEqual(actual.tensors[name].shape, shape);
    assert.deepEqual(actual.tensors[name].data, Float64Array.from(data));
  }
  const [{ geometry, xray }] = actual.samples;
  assert.deepEqual([geometry.energy, xray.rWork, xray.rFree], [wanted.energy, wanted.rWork, wanted.rFree]);
}
