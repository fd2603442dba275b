/** Four significant digits; exponents only where they are shorter. */
export function figure(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e6) return value < 0 ? `−${count(size)}` : count(value);
  const text =
    value !== 0 && (size < 1e-3 || size >= 1e6)
      ? value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e")
      : String(Number(value.toPrecision(digits)));
  return text.replace(/^-/, "−").replace("e+", "e").replace("e-", "e−");
}

/** With a sign, for advantages and differences. */
export const signed = (value: number, digits = 3): string =>
  value > 0 ? `+${figure(value, digits)}` : figure(value, digits);

export const percent = (share: number, digits = 0): string => `${(100 * share).toFixed(digits)} %`;

export function count(value: number): string {
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+(?!\d))/g, " ");
}

export function bytes(value: number): string {
  if (value < 1e3) return `${value} B`;
  if (value < 1e6) return `${(value / 1e3).toFixed(1)} kB`;
  if (value < 1e9) return `${(value / 1e6).toFixed(1)} MB`;
  return `${(value / 1e9).toFixed(2)} GB`;
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.round(hours / 24)} days`;
}

/** `then` and `now` in milliseconds since 1970. */
export function ago(then: number, now = Date.now()): string {
  const past = (now - then) / 1000;
  return past < 5 ? "now" : `${duration(past)} ago`;
}

export const dateTime = (milliseconds: number): string =>
  new Date(milliseconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Of a place on an axis of steps; nothing between two steps. */
export const stepText = (x: number): string => (Number.isInteger(x) ? count(x) : "");
