import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style/base.css";
import "./style/frame.css";
import "./style/runs.css";
import "./style/charts.css";
import "./style/rollouts.css";
import "./style/chat.css";
import { App } from "./app.tsx";
import { startLive } from "./live.ts";
import { startTheme } from "./theme.ts";

startTheme();
startLive();
render(<App />, document.getElementById("app")!);
