import { type Decoder, Transformer } from "../nn/transformer.ts";

/**
 * The frozen policy of the KL term. Kept, it lies in memory all the time; offloaded, its weights are read when they are
 * needed and given back afterwards, so that they never lie beside activations and gradients.
 */
export class Reference {
  #present = true;
  /** `bytes`: what it adds to the memory of the policy's gradient pass. */
  private constructor(
    readonly model: Decoder,
    readonly bytes: number,
    /** It computes what the policy of step 0 does. */
    readonly isStart: boolean,
    private readonly offload: { readonly drop: () => void; readonly load: () => void } | null,
  ) {}

  /** `model` may share its weights with the policy: the base of adapters, which may have begun elsewhere. */
  static kept(model: Decoder, isStart = true): Reference {
    return new Reference(model, model instanceof Transformer ? model.bytes.weights : 0, isStart, null);
  }

  /** `load` fills the model with the weights it has now. */
  static offloaded(model: Transformer, load: (model: Transformer) => void, isStart = true): Reference {
    const reference = new Reference(model, 0, isStart, {
      drop: () => model.parameters.dropWeights(),
      load: () => load(model),
    });
    reference.#drop();
    return reference;
  }

  use<T>(body: (model: Decoder) => T): T {
    if (!this.#present) this.offload!.load();
    this.#present = true;
    try {
      return body(this.model);
    } finally {
      this.#drop();
    }
  }

  /** The same for what gives way to other work in between. */
  async hold<T>(body: (model: Decoder) => Promise<T>): Promise<T> {
    if (!this.#present) this.offload!.load();
    this.#present = true;
    try {
      return await body(this.model);
    } finally {
      this.#drop();
    }
  }

  #drop(): void {
    if (!this.offload) return;
    this.offload.drop();
    this.#present = false;
  }
}
