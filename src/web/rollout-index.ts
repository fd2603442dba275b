/**
 * The light columns of a rollouts table as typed arrays, and the texts for searching: a filter is one pass over arrays in
 * memory, a page of rows is then read from the database by row number. Rows come in the order of their numbers.
 */
import type { RolloutQuery, RolloutSort } from "./api.ts";

export interface LightRow {
  readonly rowid: number;
  readonly step: number;
  readonly epoch: number;
  readonly prompt_index: number;
  readonly rollout_index: number;
  readonly reward: number;
  readonly advantage: number | null;
  readonly flagged: number | null;
  readonly finish: string | null;
  readonly mode: string;
  /** null: not kept. */
  readonly tokens: number | null;
}

/** Names as small numbers. */
class Names {
  readonly list: string[] = [];
  readonly #codes = new Map<string, number>();

  codeOf(name: string): number {
    let code = this.#codes.get(name);
    if (code === undefined) {
      code = this.list.push(name) - 1;
      this.#codes.set(name, code);
    }
    return code;
  }

  find(name: string): number {
    return this.#codes.get(name) ?? -1;
  }
}

const UNKNOWN = -1;

interface Columns {
  rowid: Uint32Array;
  step: Int32Array;
  epoch: Int32Array;
  prompt_index: Int32Array;
  rollout_index: Int32Array;
  reward: Float64Array;
  /** NaN: none. */
  advantage: Float64Array;
  flagged: Int8Array;
  finish: Int16Array;
  mode: Int16Array;
  tokens: Int32Array;
}

function columns(capacity: number): Columns {
  return {
    rowid: new Uint32Array(capacity),
    step: new Int32Array(capacity),
    epoch: new Int32Array(capacity),
    prompt_index: new Int32Array(capacity),
    rollout_index: new Int32Array(capacity),
    reward: new Float64Array(capacity),
    advantage: new Float64Array(capacity),
    flagged: new Int8Array(capacity),
    finish: new Int16Array(capacity),
    mode: new Int16Array(capacity),
    tokens: new Int32Array(capacity),
  };
}

export interface Extent {
  min: number;
  max: number;
}

const nothing = (): Extent => ({ min: Number.POSITIVE_INFINITY, max: Number.NEGATIVE_INFINITY });

function widen(extent: Extent, value: number): void {
  if (value < extent.min) extent.min = value;
  if (value > extent.max) extent.max = value;
}

const FIRST_CAPACITY = 4096;

export class RolloutIndex {
  length = 0;
  #columns = columns(FIRST_CAPACITY);
  readonly #finishes = new Names();
  readonly #modes = new Names();
  readonly extent = { step: nothing(), reward: nothing(), advantage: nothing() };
  flagged = 0;
  #orders = new Map<string, { length: number; order: Uint32Array }>();

  get finishes(): readonly string[] {
    return this.#finishes.list;
  }

  get modes(): readonly string[] {
    return this.#modes.list;
  }

  get lastRow(): number {
    return this.length === 0 ? 0 : this.#columns.rowid[this.length - 1]!;
  }

  add(row: LightRow): void {
    if (this.length === this.#columns.rowid.length) this.#grow();
    const at = this.length++;
    const c = this.#columns;
    c.rowid[at] = row.rowid;
    c.step[at] = row.step;
    c.epoch[at] = row.epoch;
    c.prompt_index[at] = row.prompt_index;
    c.rollout_index[at] = row.rollout_index;
    c.reward[at] = row.reward;
    c.advantage[at] = row.advantage ?? Number.NaN;
    c.flagged[at] = row.flagged ?? UNKNOWN;
    c.finish[at] = row.finish === null ? UNKNOWN : this.#finishes.codeOf(row.finish);
    c.mode[at] = this.#modes.codeOf(row.mode);
    c.tokens[at] = row.tokens ?? UNKNOWN;
    widen(this.extent.step, row.step);
    widen(this.extent.reward, row.reward);
    if (row.advantage !== null) widen(this.extent.advantage, row.advantage);
    if (row.flagged === 1) this.flagged += 1;
  }

  #grow(): void {
    const old = this.#columns;
    const grown = columns(2 * old.rowid.length);
    for (const name of Object.keys(old) as (keyof Columns)[]) grown[name].set(old[name]);
    this.#columns = grown;
  }

  row(at: number): LightRow {
    const c = this.#columns;
    const advantage = c.advantage[at]!;
    return {
      rowid: c.rowid[at]!,
      step: c.step[at]!,
      epoch: c.epoch[at]!,
      prompt_index: c.prompt_index[at]!,
      rollout_index: c.rollout_index[at]!,
      reward: c.reward[at]!,
      advantage: Number.isNaN(advantage) ? null : advantage,
      flagged: c.flagged[at] === UNKNOWN ? null : c.flagged[at]!,
      finish: c.finish[at] === UNKNOWN ? null : this.#finishes.list[c.finish[at]!]!,
      mode: this.#modes.list[c.mode[at]!]!,
      tokens: c.tokens[at] === UNKNOWN ? null : c.tokens[at]!,
    };
  }

  /** How many rows are not beyond a row number. */
  upto(rowid: number): number {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#columns.rowid[middle]! <= rowid) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Places of the rows that match, in the order asked for. `found`: 1 where the searched text is; null: no search. */
  select(query: RolloutQuery, found: Uint8Array | null): Uint32Array {
    const c = this.#columns;
    const count = query.upto === undefined ? this.length : this.upto(query.upto);
    const keep = found === null ? new Uint8Array(count).fill(1) : found.slice(0, count);
    const drop = (column: ArrayLike<number>, wanted: (value: number) => boolean) => {
      for (let i = 0; i < count; i++) if (keep[i] === 1 && !wanted(column[i]!)) keep[i] = 0;
    };
    const within = (column: ArrayLike<number>, min: number | undefined, max: number | undefined) => {
      const [low, high] = [min ?? Number.NEGATIVE_INFINITY, max ?? Number.POSITIVE_INFINITY];
      // NaN is in no range.
      if (min !== undefined || max !== undefined) drop(column, (value) => value >= low && value <= high);
    };
    within(c.step, query.step_min, query.step_max);
    within(c.reward, query.reward_min, query.reward_max);
    within(c.advantage, query.advantage_min, query.advantage_max);
    if (query.advantage_sign !== undefined)
      drop(c.advantage, (value) => Math.sign(value) === query.advantage_sign);
    if (query.flagged !== undefined) {
      const code = { yes: 1, no: 0, unknown: UNKNOWN }[query.flagged];
      drop(c.flagged, (value) => value === code);
    }
    if (query.finish !== undefined) {
      const code = this.#finishes.find(query.finish);
      drop(c.finish, (value) => value === code && code >= 0);
    }
    if (query.mode !== undefined) {
      const code = this.#modes.find(query.mode);
      drop(c.mode, (value) => value === code);
    }
    if (query.prompt_index !== undefined) drop(c.prompt_index, (value) => value === query.prompt_index);
    const order = this.#order(query.sort ?? "step", query.order ?? "desc");
    const places = new Uint32Array(count);
    let kept = 0;
    for (let i = 0; i < order.length; i++) {
      const at = order[i]!;
      if (at < count && keep[at] === 1) places[kept++] = at;
    }
    return places.subarray(0, kept);
  }

  /** All places sorted by a column; equal ones in the order of the table. */
  #order(sort: RolloutSort, direction: "asc" | "desc"): Uint32Array {
    const name = `${sort} ${direction}`;
    const known = this.#orders.get(name);
    if (known?.length === this.length) return known.order;
    const c = this.#columns;
    const column = {
      step: c.step,
      reward: c.reward,
      advantage: c.advantage,
      length: c.tokens,
      prompt: c.prompt_index,
    }[sort];
    const order = sorted(column, this.length, direction === "desc");
    this.#orders.set(name, { length: this.length, order });
    return order;
  }

  /** Rewards of some rows: counts in equal parts of their range, and the mean. */
  rewards(places: Uint32Array, parts: number): { range: Extent; counts: number[]; mean: number } | null {
    if (places.length === 0) return null;
    const { reward } = this.#columns;
    const range = nothing();
    let sum = 0;
    for (const at of places) {
      widen(range, reward[at]!);
      sum += reward[at]!;
    }
    const counts = new Array<number>(range.max > range.min ? parts : 1).fill(0);
    const scale = range.max > range.min ? parts / (range.max - range.min) : 0;
    for (const at of places) {
      const part = Math.min(counts.length - 1, Math.floor((reward[at]! - range.min) * scale));
      counts[part]! += 1;
    }
    return { range, counts, mean: sum / places.length };
  }
}

/**
 * Places 0..count-1 by value: the float32 bits of a value, made to grow with it, above the place in 64 bits, which sort
 * without a function of ours. NaN comes last.
 */
function sorted(column: ArrayLike<number>, count: number, descending: boolean): Uint32Array {
  const keys = new BigUint64Array(count);
  const words = new Uint32Array(keys.buffer);
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  for (let i = 0; i < count; i++) {
    const value = column[i]!;
    // Not the sign: -0 is no less than 0.
    float[0] = descending ? 0 - value : value + 0;
    const raw = bits[0]!;
    words[2 * i] = i;
    words[2 * i + 1] = Number.isNaN(value) ? 0xffffffff : raw & 0x80000000 ? ~raw : raw | 0x80000000;
  }
  keys.sort();
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = words[2 * i]!;
  return order;
}

/** Texts of consecutive rows in one piece of memory: found by the machine's own search for bytes. */
export class TextChunk {
  readonly #bytes: Buffer;
  readonly #starts: Uint32Array;

  /** Of folded texts. */
  constructor(texts: readonly string[]) {
    const encoded = texts.map((text) => Buffer.from(`${text}\0`));
    this.#bytes = Buffer.concat(encoded);
    this.#starts = new Uint32Array(texts.length);
    let at = 0;
    for (const [i, each] of encoded.entries()) {
      this.#starts[i] = at;
      at += each.length;
    }
  }

  get rows(): number {
    return this.#starts.length;
  }

  get byteLength(): number {
    return this.#bytes.byteLength;
  }

  /** Sets found[from + i] = 1 for every row that contains the folded text. */
  search(needle: Uint8Array, found: Uint8Array, from: number): void {
    const bytes = this.#bytes;
    for (let at = bytes.indexOf(needle); at >= 0; ) {
      const row = this.#rowAt(at);
      found[from + row] = 1;
      if (row + 1 === this.rows) return;
      at = bytes.indexOf(needle, this.#starts[row + 1]);
    }
  }

  #rowAt(byte: number): number {
    let [low, high] = [0, this.rows];
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! <= byte) low = middle;
      else high = middle;
    }
    return low;
  }
}

/** Texts are compared so: case does not matter, and the byte that parts rows is in none. */
export function fold(text: string): string {
  return text.toLowerCase().replaceAll("\0", "\ufffd");
}
