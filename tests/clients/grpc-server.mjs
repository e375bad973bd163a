// A server of calls as gRPC makes them, over HTTP/2 in the clear: messages go back as they come, the
// status comes in the trailers. By their paths, others take or answer bit by bit.
import { createServer } from "node:http2";

const [address, port] = process.argv.slice(2);
const server = createServer();
server.on("stream", (stream, headers) => {
  stream.on("error", () => {});
  if (headers[":path"] === "/check") {
    stream.respond({ ":status": 200 });
    return stream.end("well");
  }
  if (headers[":path"] === "/health/slowly") {
    // Takes a body bit by bit, and says how much it was.
    let taken = 0;
    const take = () => (taken += (stream.read(10_240) ?? stream.read())?.length ?? 0);
    const taking = setInterval(take, 100);
    stream.on("close", () => clearInterval(taking));
    return stream.on("end", () => stream.respond({ ":status": 200 }) || stream.end(`${taken}`));
  }
  if (/watch|quiet/.test(headers[":path"])) {
    // Goes on for as long as its client does, whatever that says.
    stream.respond({ ":status": 200 });
    const tick = () => headers[":path"].includes("quiet") || stream.write("tick");
    const ticking = setInterval(tick, 300);
    stream.on("close", () => clearInterval(ticking));
    return stream.resume().on("end", () => clearInterval(ticking) || stream.end());
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
