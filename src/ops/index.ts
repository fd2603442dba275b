import * as attention from "./attention.ts";
import * as decode from "./decode.ts";
import { type OpDef, registerOperations } from "./define.ts";
import * as dropout from "./dropout.ts";
import * as elementwise from "./elementwise.ts";
import * as embedding from "./embedding.ts";
import * as gemm from "./gemm.ts";
import * as head from "./head.ts";
import * as lora from "./lora.ts";
import * as mlp from "./mlp.ts";
import * as norm from "./norm.ts";
import * as optimizer from "./optimizer.ts";
import * as quant from "./quant.ts";

const families = {
  gemm,
  norm,
  attention,
  mlp,
  embedding,
  head,
  optimizer,
  elementwise,
  decode,
  lora,
  dropout,
  quant,
};

function isOp(value: unknown): value is OpDef {
  return typeof value === "object" && value !== null && "tensors" in value;
}

/** Every operation with its family, in the order of its id (1-based): part of the ABI. */
export const catalogue: readonly { readonly op: OpDef; readonly family: string }[] = Object.entries(
  families,
).flatMap(([family, module]) =>
  Object.values(module)
    .filter(isOp)
    .map((op) => ({ op, family }))
    .sort((a, b) => (a.op.name < b.op.name ? -1 : 1)),
);

registerOperations(catalogue.map(({ op }) => op.name));
