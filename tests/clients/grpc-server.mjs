// A server of calls as gRPC makes them, over HTTP/2 in the clear: messages go back as they come, the
// status comes in the trailers.
import { createServer } from "node:http2";

const [address, port] = process.argv.slice(2);
const server = createServer();
server.on("stream", (stream, headers) => {
  stream.on("error", () => {});
  if (headers[":path"] === "/check") {
    stream.respond({ ":status": 200 });
    return stream.end("well");
  }
  stream.respond(
    { ":status": 200, "content-type": "application/grpc", "x-te": headers.te ?? "none" },
    { waitForTrailers: true },
  );
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", "grpc-message": "done" }));
  stream.on("data", (data) => stream.write(data));
  stream.on("end", () => stream.end());
});
server.listen(Number(port), address);
