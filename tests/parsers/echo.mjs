// An HTTP server that answers with what it took each request for.
import { createHash } from "node:crypto";
import { createServer } from "node:http";

const [address, port] = process.argv.slice(2);
const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (part) => {
    hash.update(part);
    length += part.length;
  });
  request.on("end", () => {
    const { method, url, headers } = request;
    const seen = { method, url, host: headers.host, mark: headers["x-mark"], length, digest: hash.digest("hex") };
    response.end(JSON.stringify(seen));
  });
});
server.listen(Number(port), address);
