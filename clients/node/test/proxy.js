/** A relay before a unix socket whose connections a test can cut. */
import { once } from 'node:events';
import net from 'node:net';

export async function startProxy(path, target) {
  const sockets = new Set();
  let forwarded = 0;
  let held = false;
  const server = net.createServer((near) => {
    const far = net.connect(target);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        near.destroy();
        far.destroy();
      });
    }
    near.on('data', (data) => {
      forwarded += data.length;
      far.write(data);
    });
    far.on('data', (data) => {
      if (!held) near.write(data);
    });
  });
  server.listen(path);
  await once(server, 'listening');
  return {
    /** Bytes that went to the server. */
    forwarded: () => forwarded,
    /** Loses all answers until the cut. */
    hold: () => {
      held = true;
    },
    /** Ends all connections; new ones work. */
    cut: () => {
      held = false;
      for (const socket of sockets) socket.destroy();
    },
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
