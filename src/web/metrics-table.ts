/** metrics.jsonl of a run as columns in memory, following the file. */
import { type MetricsPart, metricsOf } from "../report/metrics.ts";
import type { MetricRow, MetricRows, MetricSeries, RunMetrics } from "./api.ts";

/** Text read at once, between which others have their turn. */
const BYTES_AT_ONCE = 1 << 20;

/** Values of a metric, with the rows they are of: some metrics are in few rows. */
class Column {
  length = 0;
  rows = new Uint32Array(256);
  values = new Float64Array(256);

  push(row: number, value: number): void {
    if (this.length === this.rows.length) {
      const rows = new Uint32Array(2 * this.length);
      const values = new Float64Array(2 * this.length);
      rows.set(this.rows);
      values.set(this.values);
      this.rows = rows;
      this.values = values;
    }
    this.rows[this.length] = row;
    this.values[this.length] = value;
    this.length += 1;
  }

  /** The first place whose row is not before `row`. */
  placeOf(row: number): number {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.rows[middle]! < row) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Fields of a row that say where it is. */
const NO_METRICS: ReadonlySet<string> = new Set(["step", "time", "examples"]);

const finite = (value: number): number | null => (Number.isFinite(value) ? value : null);

/** So that a generation of one server is none of another. */
const started = Date.now().toString(36);
let generations = 0;

export class MetricsTable {
  #columns = new Map<string, Column>();
  #steps = new Column();
  #times = new Column();
  /** NaN where a row does not count them. */
  #examples = new Column();
  #cursor: string | null = null;
  #loading: Promise<void> | null = null;
  generation = newGeneration();

  constructor(readonly dir: string) {}

  get rows(): number {
    return this.#steps.length;
  }

  get names(): string[] {
    return [...this.#columns.keys()].sort();
  }

  get values(): number {
    let count = 0;
    for (const column of this.#columns.values()) count += column.length;
    return count;
  }

  /** Reads what is new. */
  refresh(): Promise<void> {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  async #load(): Promise<void> {
    for (;;) {
      const part = metricsOf(this.dir, this.#cursor, BYTES_AT_ONCE);
      if (part.reset) {
        this.#columns = new Map();
        this.#steps = new Column();
        this.#times = new Column();
        this.#examples = new Column();
        this.generation = newGeneration();
      }
      this.#cursor = part.cursor;
      this.#take(part);
      if (!part.more) return;
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  #take({ rows }: MetricsPart): void {
    for (const row of rows) {
      const at = this.rows;
      this.#steps.push(at, row.step ?? Number.NaN);
      this.#times.push(at, row.time ?? Number.NaN);
      this.#examples.push(at, row.examples ?? Number.NaN);
      for (const name of Object.keys(row)) {
        if (NO_METRICS.has(name)) continue;
        let column = this.#columns.get(name);
        if (column === undefined) {
          column = new Column();
          this.#columns.set(name, column);
        }
        column.push(at, row[name]!);
      }
    }
  }

  get #begin(): number {
    return this.rows === 0 ? 0 : this.#times.values[0]!;
  }

  /** Curves of some metrics (empty: all), between two steps, of about `points` points each. */
  curves(names: readonly string[], points: number, xMin: number, xMax: number): RunMetrics {
    const series: Record<string, MetricSeries> = {};
    for (const name of names.length > 0 ? names : this.names) {
      const column = this.#columns.get(name);
      if (column !== undefined) series[name] = this.#curve(column, points, xMin, xMax);
    }
    return { generation: this.generation, rows: this.rows, series };
  }

  #curve(column: Column, points: number, xMin: number, xMax: number): MetricSeries {
    const steps = this.#steps.values;
    // Steps grow along the rows.
    let [from, to] = [0, column.length];
    while (from < to && steps[column.rows[from]!]! < xMin) from += 1;
    while (to > from && steps[column.rows[to - 1]!]! > xMax) to -= 1;
    const places = thinned(column.values, from, to, points);
    const examples = places.map((at) => finite(this.#examples.values[column.rows[at]!]!));
    return {
      step: places.map((at) => steps[column.rows[at]!]!),
      time: places.map((at) => this.#times.values[column.rows[at]!]! - this.#begin),
      ...(examples.some((each) => each !== null) ? { examples } : {}),
      value: places.map((at) => finite(column.values[at]!)),
      of: to - from,
    };
  }

  /** Rows after the first `from` of a generation; all of them if it is another one. */
  rowsFrom(run: string, generation: string, from: number, limit: number): MetricRows {
    const begin = generation === this.generation ? Math.min(from, this.rows) : 0;
    const end = Math.min(this.rows, begin + limit);
    const rows: (MetricRow & { metrics: Record<string, number | null> })[] = [];
    for (let at = begin; at < end; at++) {
      const examples = this.#examples.values[at]!;
      rows.push({
        step: this.#steps.values[at]!,
        time: this.#times.values[at]! - this.#begin,
        ...(Number.isNaN(examples) ? {} : { examples }),
        metrics: {},
      });
    }
    for (const [name, column] of this.#columns)
      for (let place = column.placeOf(begin); place < column.length && column.rows[place]! < end; place++)
        rows[column.rows[place]! - begin]!.metrics[name] = finite(column.values[place]!);
    return {
      run,
      generation: this.generation,
      from: begin,
      rows,
      total: this.rows,
    };
  }
}

function newGeneration(): string {
  generations += 1;
  return `${started}-${generations}`;
}

/**
 * Places from..to, or of each of points / 2 equal parts the least and the greatest, in their order: a curve drawn of
 * them has all its peaks. A part of NaN alone keeps its first, which is a gap.
 */
function thinned(values: Float64Array, from: number, to: number, points: number): number[] {
  const count = to - from;
  if (count <= points) return Array.from({ length: count }, (_, i) => from + i);
  const parts = Math.max(1, Math.floor(points / 2));
  const places: number[] = [];
  for (let part = 0; part < parts; part++) {
    const begin = from + Math.floor((part * count) / parts);
    const end = from + Math.floor(((part + 1) * count) / parts);
    let [least, greatest] = [-1, -1];
    for (let at = begin; at < end; at++) {
      const value = values[at]!;
      if (!Number.isFinite(value)) continue;
      if (least < 0 || value < values[least]!) least = at;
      if (greatest < 0 || value > values[greatest]!) greatest = at;
    }
    if (least < 0) places.push(begin);
    else if (least === greatest) places.push(least);
    else places.push(Math.min(least, greatest), Math.max(least, greatest));
  }
  // A live curve ends where the run is.
  if (places.at(-1) !== to - 1) places.push(to - 1);
  return places;
}
