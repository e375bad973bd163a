// Over one connection, uploads that the server does not take, and then one that it does: prints the status of that.
import { readFileSync } from "node:fs";
import { connect } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";

const [address, ca, stuck] = process.argv.slice(2);
const session = connect(`https://${address}:443`, {
  ca: readFileSync(ca),
  servername: "edge.test",
  maxSessionMemory: 100, // MB, or it refuses answers
});

const post = (path) =>
  new Promise((resolve) => {
    const stream = session.request({ ":method": "POST", ":authority": "edge.test", ":path": path });
    stream.on("response", (headers) => resolve(headers[":status"]));
    stream.on("error", (error) => resolve(`${error}`));
    stream.resume().end(Buffer.alloc(1 << 18));
  });

for (let n = 0; n < Number(stuck); n += 1) post("/health/stuck");
// Until the edge takes no more of them.
await sleep(2_000);
console.log(await Promise.race([post("/health/taken"), sleep(8_000, "none")]));
process.exit();
