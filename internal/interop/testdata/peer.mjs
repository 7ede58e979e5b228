// A program that knows CloudEvents by their SDK for JavaScript, NATS by its client,
// and not Tidings. It prints each CloudEvent that it gets on read.> as a line of
// JSON, after the SDK has validated it, and sends events on sent.MODE.KIND:
// structured with and without a Content-Type, and binary as the NATS binding says.
// It ends with its input.
import { connect, headers } from "@nats-io/transport-node";
import cloudevents from "cloudevents";
const { CloudEvent } = cloudevents;

const nc = await connect({ servers: process.argv[2] });
const tell = (v) => process.stdout.write(JSON.stringify(v) + "\n");

function read(m) {
  const told = { subject: m.subject, traceparent: m.headers?.get("traceparent") ?? "" };
  const type = m.headers?.get("Content-Type") ?? "";
  const attributes = {};
  let data;
  for (const k of m.headers?.keys() ?? []) {
    if (k.startsWith("ce-")) attributes[k.slice(3)] = decodeURIComponent(m.headers.get(k));
  }
  told.mode = attributes.specversion ? "binary" : "structured";
  try {
    if (told.mode === "structured") {
      if (type !== "" && type !== "application/cloudevents+json") throw new Error("Content-Type: " + type);
      const { data: value, data_base64, ...rest } = JSON.parse(m.string());
      Object.assign(attributes, rest);
      const json = attributes.datacontenttype === "application/json";
      data = data_base64 !== undefined ? Buffer.from(data_base64, "base64") : Buffer.from(json ? JSON.stringify(value) : value);
    } else {
      data = Buffer.from(m.data);
    }
    const e = new CloudEvent({ ...attributes, data_base64: data.toString("base64") }); // it throws what is not valid
    const { specversion, id, source, type: kind, time, datacontenttype, data: _, data_base64: __, ...extensions } = e.toJSON();
    Object.assign(told, { id, source, type: kind, time, datacontenttype, extensions, data: data.toString("base64") });
  } catch (err) {
    told.error = String(err);
  }
  return told;
}

const sub = nc.subscribe("read.>");
const reading = (async () => {
  for await (const m of sub) tell(read(m));
})();
await nc.flush();
tell({ subject: "ready" });

const kinds = [
  ["json", "application/json", { n: 1, s: "grüße" }],
  ["text", "text/plain", 'grüße, "world"\n'],
  ["bytes", "application/octet-stream", Uint8Array.from([0, 1, 254, 255])],
  ["proto", "application/protobuf", Uint8Array.from([10, 7, ...Buffer.from("grüße")])],
];

// pct encodes as the NATS binding says: all but the printable characters of ASCII,
// and of those the space, the quote and the percent sign.
const pct = (s) => [...Buffer.from(s)].map((c) => (c > 0x20 && c < 0x7f && c !== 0x22 && c !== 0x25 ? String.fromCharCode(c) : "%" + c.toString(16).toUpperCase().padStart(2, "0"))).join("");

for (const [kind, datacontenttype, data] of kinds) {
  const e = new CloudEvent({ id: "id-" + kind, source: "//peer/js", type: "peer.sent", comexample: "x y", datacontenttype, data });
  const envelope = JSON.stringify(e); // Uint8Array becomes data_base64
  nc.publish("sent.structured." + kind, envelope);
  const named = headers();
  named.set("Content-Type", "application/cloudevents+json; charset=utf-8");
  named.set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  nc.publish("sent.named." + kind, envelope, { headers: named });
  const binary = headers();
  for (const [k, v] of Object.entries(JSON.parse(envelope))) {
    if (!k.startsWith("data") || k === "datacontenttype") binary.set("ce-" + k, pct(v));
  }
  const body = data instanceof Uint8Array ? data : Buffer.from(typeof data === "string" ? data : JSON.stringify(data));
  nc.publish("sent.binary." + kind, body, { headers: binary });
}
await nc.flush();

process.stdin.resume();
process.stdin.on("end", async () => {
  await nc.drain();
  await reading;
});
