/** Which curves share a chart, and which charts a group. */
import { modeOf } from "../../report/modes.ts";

export interface ChartOf {
  /** Stable: a favourite is remembered by it. */
  readonly id: string;
  readonly title: string;
  readonly metrics: readonly string[];
  /** Metric whose value is half the height of a band around the first. */
  readonly spread?: string;
  readonly stacked?: boolean;
}

export interface Group {
  readonly id: string;
  readonly title: string;
  readonly charts: readonly ChartOf[];
}

/** Charts that gather several metrics; all others stand by themselves, training and evaluation together. */
const GATHERED: readonly (Omit<ChartOf, "metrics"> & { readonly pattern: RegExp })[] = [
  {
    id: "reward",
    title: "Reward",
    pattern: /^(train\/reward_mean|eval\/reward(_greedy)?)$/,
    spread: "train/reward_std",
  },
  { id: "components", title: "Reward components", pattern: /^train\/rewards?\// },
  { id: "eval-components", title: "Reward components, evaluation", pattern: /^eval\/rewards?\// },
  { id: "kl", title: "KL from the reference", pattern: /^(train|eval)\/kl_div$/ },
  { id: "kl-estimators", title: "KL estimators", pattern: /^train\/kl_k[123]$/ },
  { id: "length", title: "Completion length", pattern: /^(train|eval)\/completion_length_(avg|max)$/ },
  {
    id: "times",
    title: "Where a step's time goes",
    pattern: /^train\/(rollout|reward|reference|train)_time$/,
    stacked: true,
  },
];

const GROUPS: readonly (readonly [string, string, RegExp])[] = [
  [
    "reward",
    "Reward",
    /reward(?!.*_time)|accuracy|margin|zero_std|calibration|brier|judge|invalid|flag|hack/,
  ],
  ["diversity", "Diversity", /entropy|unique|jaccard|divers|template|degenerate|distinct/],
  ["length", "Lengths", /length|ending|truncat|eos/],
  [
    "device",
    "Speed and device",
    /^device\/|_time$|tokens_per_second|memory|bytes|fraction|utili[sz]ation|tokens$/,
  ],
  ["loss", "Loss and policy", /./],
];
const ORDER = ["reward", "loss", "diversity", "length", "device"];

const groupOf = (metric: string): string => GROUPS.find(([, , pattern]) => pattern.test(metric))![0];

/** "train/kl_div" → "Kl div"; of a mode's evaluation "eval/both/hack_rate" → "Hack rate, both". */
export function plainName(metric: string): string {
  const of = modeOf(metric, "eval");
  if (of !== null) return `${plainName(of.figure)}, ${of.mode.replaceAll("_", " ")}`;
  const text = metric
    .replace(/^(train|eval|device)\//, "")
    .replace(/^rewards\//, "")
    .replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * `apart`: several runs are compared, a colour is a run, so a chart has at most one metric of training and one of
 * evaluation.
 */
export function groupsOf(names: readonly string[], search = "", apart = false): Group[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const left = new Set(names.filter((name) => name !== "train/kl" && name !== "train/reward_std"));
  const charts: ChartOf[] = [];
  for (const { pattern, ...chart } of GATHERED) {
    const metrics = [...left].filter((name) => pattern.test(name));
    if (metrics.length === 0) continue;
    if (apart && (metrics.filter((name) => name.startsWith("train/")).length > 1 || metrics.length > 2)) {
      const pair = chart.id === "reward" ? ["train/reward_mean", "eval/reward"] : [];
      const both = pair.filter((name) => metrics.includes(name));
      if (both.length === 0) continue;
      metrics.splice(0, metrics.length, ...both);
    }
    for (const name of metrics) left.delete(name);
    const spread = chart.spread !== undefined && names.includes(chart.spread) ? chart.spread : undefined;
    // What is trained on before what is evaluated, in the order they are written.
    metrics.sort((a, b) => Number(b.startsWith("train/")) - Number(a.startsWith("train/")));
    charts.push({ ...chart, spread, metrics });
  }
  const byStem = new Map<string, string[]>();
  for (const name of left) {
    // Of one run the modes of a figure lie in one chart.
    const of = apart ? null : modeOf(name, "eval");
    const stem = of === null ? name.replace(/^(train|eval)\//, "") : `modes/${of.figure}`;
    byStem.set(stem, [...(byStem.get(stem) ?? []), name]);
  }
  for (const [stem, metrics] of byStem) {
    const of = modeOf(metrics[0]!, "eval");
    // Training before its evaluation; modes have their colours by their order.
    metrics.sort((a, b) => (a < b === (of === null) ? 1 : -1));
    const title = of === null || apart ? plainName(metrics[0]!) : `${plainName(of.figure)} by mode`;
    charts.push({ id: stem, title, metrics });
  }
  const wanted = charts.filter(({ title, metrics }) => {
    const text = [title, ...metrics].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  return ORDER.map((id) => ({
    id,
    title: GROUPS.find(([each]) => each === id)![1],
    charts: wanted.filter((chart) => groupOf(chart.metrics[0]!) === id),
  })).filter((group) => group.charts.length > 0);
}
