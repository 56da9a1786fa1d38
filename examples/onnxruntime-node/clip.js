// node clip.js NETWORK.onnx CLIP.json OUT.json
// CLIP.json: {"shape": [1, 3, H, W], "frames": [[...], ...]}, flat numbers. Writes the outputs of each frame, flat.
import { readFile, writeFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { DeltaSession } from "./session.js";

const [network, clip, out] = process.argv.slice(2);
if (out === undefined) {
  console.error("node clip.js NETWORK.onnx CLIP.json OUT.json");
  process.exit(2);
}
const { shape, frames } = JSON.parse(await readFile(clip, "utf8"));
const session = await DeltaSession.open(network);
const results = [];
for (const frame of frames) {
  const outputs = await session.run(new ort.Tensor("float32", Float32Array.from(frame), shape));
  results.push(Object.values(outputs).map((value) => Array.from(value.data)));
}
await writeFile(out, JSON.stringify(results));
