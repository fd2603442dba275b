import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import "uplot/dist/uPlot.min.css";
import "./page.css";
import type { RunList, RunSummary } from "../api.ts";

function Runs() {
  const [runs, setRuns] = useState<readonly RunSummary[]>([]);
  useEffect(() => {
    void fetch("/api/runs").then(async (response) => setRuns(((await response.json()) as RunList).runs));
  }, []);
  return (
    <ul>
      {runs.map((run) => (
        <li key={run.id}>
          {run.name}: {run.state}, step {run.step}
        </li>
      ))}
    </ul>
  );
}

render(<Runs />, document.getElementById("app")!);
