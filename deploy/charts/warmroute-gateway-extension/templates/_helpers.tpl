{{- define "extension.selectorLabels" -}}
app.kubernetes.io/name: warmroute-gateway-extension
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "extension.labels" -}}
{{ include "extension.selectorLabels" . }}
app.kubernetes.io/component: gateway-extension
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "extension.metadata" -}}
name: {{ .Release.Name }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "extension.labels" . | nindent 2 }}
{{- end }}
