import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Mesh } from '../src/index.js';
import { startMesh } from './server.js';

const certificate = fileURLToPath(new URL('certificates/certificate.pem', import.meta.url));
const key = fileURLToPath(new URL('certificates/key.pem', import.meta.url));

suite('a mesh with TLS', () => {
  let server;

  before(async () => {
    const args = ['--tls-certificate', certificate, '--tls-key', key];
    server = await startMesh({ listen: 'localhost:0', args });
  });

  after(() => server?.stop());

  test('is found in the state directory and trusted by its certificate', async () => {
    const { address, stateDirectory } = server;
    const mesh = new Mesh({ stateDirectory, rootCertificates: certificate });
    try {
      assert.equal(mesh.address, address);
      const { sizeBytes } = await mesh.upload(Buffer.from('x'), { kind: 'map' });
      assert.equal(sizeBytes, 1);
    } finally {
      mesh.close();
    }
  });

  test('is not reached without trust', async () => {
    const { stateDirectory } = server;
    for (const options of [{ stateDirectory }, { ...server, tls: false }]) {
      const mesh = new Mesh({ ...options, retries: 0 });
      try {
        const upload = mesh.upload(Buffer.from('x'), { kind: 'map' });
        await assert.rejects(upload, { code: 'UNAVAILABLE' });
      } finally {
        mesh.close();
      }
    }
  });
});
