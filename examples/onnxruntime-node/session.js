// A network exported by deltaconvert, in JavaScript: the state goes round, frame after frame.
import * as ort from "onnxruntime-node";

const BYTES = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array, uint8: Uint8Array, int32: Int32Array };

export class DeltaSession {
  /** A session for one batch of streams. */
  static async open(path, options = {}) {
    const session = await ort.InferenceSession.create(path, options);
    return new DeltaSession(session);
  }

  constructor(session) {
    this.session = session;
    const inputs = new Map(session.inputMetadata.map((value) => [value.name, value]));
    this.frame = session.inputNames.find((name) => !name.endsWith(".state") && name !== "everything_changed");
    this.outputs = session.outputNames.filter((name) => !name.endsWith(".state_out"));
    this.streams = inputs.get("everything_changed").shape[0];
    // What the states hold before the first frame does not matter: that frame is computed in full.
    this.states = {};
    for (const [name, { type, shape }] of inputs) {
      if (name.endsWith(".state")) {
        const size = shape.reduce((a, b) => a * b, 1);
        this.states[name] = new ort.Tensor(type, new BYTES[type](size), shape);
      }
    }
    this.reset();
  }

  /** The next frame is computed in full: of one stream, or of all. */
  reset(stream) {
    this.fresh ??= new Uint8Array(this.streams);
    if (stream === undefined) this.fresh.fill(1);
    else this.fresh[stream] = 1;
  }

  /** frame: an ort.Tensor. The outputs by name. */
  async run(frame) {
    const everything_changed = new ort.Tensor("bool", this.fresh, [this.streams]);
    const results = await this.session.run({ [this.frame]: frame, everything_changed, ...this.states });
    for (const name of Object.keys(this.states)) this.states[name] = results[`${name}_out`];
    this.fresh = new Uint8Array(this.streams);
    return Object.fromEntries(this.outputs.map((name) => [name, results[name]]));
  }
}
