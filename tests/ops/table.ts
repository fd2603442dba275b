/** The operation table: one row for every operation of the catalogue; a missing one does not compile. */
import type * as attention from "../../src/ops/attention.ts";
import type * as decode from "../../src/ops/decode.ts";
import type { OpDef } from "../../src/ops/define.ts";
import type * as dropout from "../../src/ops/dropout.ts";
import type * as elementwise from "../../src/ops/elementwise.ts";
import type * as embedding from "../../src/ops/embedding.ts";
import type * as gemm from "../../src/ops/gemm.ts";
import type * as head from "../../src/ops/head.ts";
import type * as lora from "../../src/ops/lora.ts";
import type * as mlp from "../../src/ops/mlp.ts";
import type * as norm from "../../src/ops/norm.ts";
import type * as optimizer from "../../src/ops/optimizer.ts";
import type * as quant from "../../src/ops/quant.ts";
import type { Row } from "./row.ts";
import { decodeRows } from "./rows-decode.ts";
import { denseRows } from "./rows-dense.ts";
import { dropoutRows } from "./rows-dropout.ts";
import { loraRows } from "./rows-lora.ts";
import { quantRows } from "./rows-quant.ts";
import { backwardRows, stateRows } from "./rows-state.ts";
import { tokenRows } from "./rows-tokens.ts";

// biome-ignore lint/suspicious/noExplicitAny: any operation, whatever its tensors
type AnyOp = OpDef<any, any>;
type OpsOf<M> = { [K in keyof M]: M[K] extends AnyOp ? K : never }[keyof M];

export type OpName =
  | OpsOf<typeof attention>
  | OpsOf<typeof decode>
  | OpsOf<typeof dropout>
  | OpsOf<typeof elementwise>
  | OpsOf<typeof embedding>
  | OpsOf<typeof gemm>
  | OpsOf<typeof head>
  | OpsOf<typeof lora>
  | OpsOf<typeof mlp>
  | OpsOf<typeof norm>
  | OpsOf<typeof optimizer>
  | OpsOf<typeof quant>;

export const rows: Readonly<Record<OpName, Row>> = {
  ...denseRows,
  ...loraRows,
  ...dropoutRows,
  ...decodeRows,
  ...tokenRows,
  ...stateRows,
  ...quantRows,
  ...backwardRows,
};
