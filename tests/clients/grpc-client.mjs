// Calls a server as gRPC does: each message is sent after the last has come back.
import { readFileSync } from "node:fs";
import { connect } from "node:http2";

const [address, ca, calls] = process.argv.slice(2);
const session = connect(`https://${address}:443`, { ca: readFileSync(ca), servername: "edge.test" });
session.on("error", (error) => {
  console.error(error);
  process.exit(1);
});

const call = (n) =>
  new Promise((resolve, reject) => {
    const stream = session.request({
      ":method": "POST",
      ":authority": "edge.test",
      ":path": "/health/grpc.Echo/Both",
      "content-type": "application/grpc",
      te: "trailers",
    });
    const seen = { messages: 0, status: 0, te: "", trailers: null };
    const message = Buffer.concat([Buffer.from([0, 0, 0, 0x40, 0]), Buffer.alloc(0x4000, n)]);
    let waiting = 0;
    stream.on("response", (headers) => {
      seen.status = headers[":status"];
      seen.te = headers["x-te"];
    });
    stream.on("trailers", (trailers) => {
      seen.trailers = { status: trailers["grpc-status"], message: trailers["grpc-message"] };
    });
    const send = () => {
      waiting = message.length;
      stream.write(message);
    };
    stream.on("data", (data) => {
      waiting -= data.length;
      if (waiting > 0) return;
      seen.messages += 1;
      if (seen.messages === 5) stream.end();
      else send();
    });
    stream.on("end", () => resolve(seen));
    stream.on("error", reject);
    send();
  });

const all = await Promise.all(Array.from({ length: Number(calls) }, (_, n) => call(n)));
console.log(JSON.stringify(all));
session.close();
